"""Templates: what they make of a task's words, and what they say when they cannot."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import templates
from shared.errors import BodyTooLarge, RequestError, TemplateFailed, TemplateNotFound
from shared.policy import Message, Policy, Template
from shared.templates import Filled, faults, known, variables

MOST_BYTES = 100_000


def template(*contents: str, **more: Any) -> Template:
    return Template(messages=[Message(role="user", content=content) for content in contents], **more)


def policy(*contents: str) -> Policy:
    return Policy(templates={"t": template(*contents)})


def render(policy: Policy, name: str, filled: Filled) -> list[dict[str, str]]:
    return templates.render(policy, name, filled, MOST_BYTES)


def filled(text: str = "", user: str = "", **context: Any) -> Filled:
    return Filled(text, context, user)


def said(content: str, text: str = "", **context: Any) -> str:
    return render(policy(content), "t", filled(text, **context))[0]["content"]


def test_messages_keep_their_roles_and_order() -> None:
    both = Template(
        messages=[
            Message(role="system", content="You answer {{ user }} in {{ context.language }}."),
            Message(role="user", content="{{ input_text }}"),
        ]
    )
    assert render(Policy(templates={"t": both}), "t", filled("Hello", "ann", language="French")) == [
        {"role": "system", "content": "You answer ann in French."},
        {"role": "user", "content": "Hello"},
    ]


def test_the_default_is_the_text_as_the_users_message() -> None:
    assert render(Policy(), "default", filled("{{ 1 }} <b>")) == [{"role": "user", "content": "{{ 1 }} <b>"}]


@given(st.text())
def test_words_are_put_in_as_they_are_and_never_read_as_a_template(text: str) -> None:
    assert said("[{{ input_text }}]", text) == f"[{text}]"


def test_blocks_leave_no_blank_lines() -> None:
    source = "{% for row in context.rows %}\n- {{ row }}\n{% endfor %}\nEnd"
    assert said(source, rows=["a", "b"]) == "- a\n- b\nEnd"


def test_an_object_is_written_as_plain_json() -> None:
    assert said("{{ context.a | tojson }}", a={"x": "<b>é"}) == '{"x":"<b>é"}'


def test_a_default_stands_for_what_is_missing() -> None:
    assert said("{{ context.city | default('Rome') }}") == "Rome"
    assert said("{% if context.city is defined %}x{% else %}y{% endif %}") == "y"


@pytest.mark.parametrize(
    ("content", "context", "param", "message"),
    [
        ("{{ context.city }}", {}, "context.city", "The template 't' cannot be filled in: `context.city` is missing."),
        ('{{ context["city"] }}', {}, "context.city", "`context.city` is missing"),
        ("{{ context.city.name }}", {}, "context.city", "`context.city` is missing"),
        ("{{ context.city.name }}", {"city": {}}, "name", "`name` is missing"),
        ("{{ nowhere }}", {}, "nowhere", "`nowhere` is missing"),
        ("{{ 1 / context.n }}", {"n": 0}, "template_id", "ZeroDivisionError"),
        ("{{ context.n | round }}", {"n": "x"}, "template_id", "TypeError"),
        ("{{ context.n + 1 }}", {"n": "x"}, "template_id", "TypeError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", {}, "template_id", "MAX_RANGE (100000)."),
    ],
)
def test_a_template_that_cannot_be_filled_in_names_itself_and_what_is_wrong(
    content: str, context: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(TemplateFailed) as caught:
        said(content, **context)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "template_failed", param)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "{{ context.__class__ }}",
        "{{ context['__class__'] | attr('__mro__') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ input_text.format.__globals__ }}",
        "{{ context.rows.append(1) }}",
        "{{ '{0.__class__}'.format(context) }}",
        "{% include 'x' %}",
    ],
)
def test_the_sandbox_lets_nothing_out(content: str) -> None:
    with pytest.raises(RequestError):
        said(content, rows=[])


def test_a_template_stops_where_what_it_makes_is_larger_than_a_body_may_be() -> None:
    """Two nested loops over a list of a producer make more than any memory holds, and nothing else runs meanwhile."""
    nested = "{% for a in context.rows %}{% for b in context.rows %}{{ a }}{% endfor %}{% endfor %}"
    with pytest.raises(BodyTooLarge):
        said(nested, rows=["x" * 10] * 100_000)
    assert said("{{ input_text }}", "x" * MOST_BYTES) == "x" * MOST_BYTES
    with pytest.raises(BodyTooLarge):
        said("{{ input_text }}!", "x" * MOST_BYTES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t2", "There is no template 't2'; did you mean `t`?"),
        ("poem", "There is no template 'poem'; known: default, t"),
        ("", "There is no template ''; known: default, t"),
        ("defalt", "did you mean `default`?"),
    ],
)
def test_an_unknown_template_is_refused_with_the_nearest_names(name: str, message: str) -> None:
    with pytest.raises(TemplateNotFound) as caught:
        render(policy("x"), name, filled())
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "template_not_found", "template_id")
    assert message in str(caught.value)


def test_a_reloaded_policy_is_rendered_anew_and_an_unchanged_one_is_compiled_once() -> None:
    first = policy("one")
    assert render(first, "t", filled())[0]["content"] == "one"
    compiled = templates._compiled(first, "t")
    assert templates._compiled(first, "t") is compiled
    assert render(policy("two"), "t", filled())[0]["content"] == "two"


def test_all_names_are_known_and_the_built_in_one_comes_first() -> None:
    assert known(policy("x")) == ["default", "t"]


# -- what can be said of a template without filling it in


def test_a_template_tells_what_it_needs() -> None:
    source = "{% set n = 1 %}{{ input_text }} {{ context.city }} {{ context['day'] }} {{ n }} {{ context.city }}"
    assert variables(template(source, "{{ user }}")) == ["input_text", "context.city", "context.day", "user"]
    assert variables(template("{{ context | tojson }}")) == ["context"]
    assert variables(template("nothing")) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{{ input_text", "messages[0].content, line 1: unexpected end of template"),
        ("a\n{% if %}", "messages[0].content, line 2: "),
        ("{{ city }}", "messages[0].content: no variable `city`; known: input_text, context, user"),
        ("{{ input_text | shout }}", "messages[0].content, line 1: No filter named 'shout'"),
        ("a\n{% include 'x' %}", "messages[0].content, line 2: a template cannot use another one"),
        ("{% import 'x' as x %}", "messages[0].content, line 1: a template cannot use another one"),
        ("{% extends 'x' %}", "messages[0].content, line 1: a template cannot use another one"),
    ],
)
def test_a_template_that_can_never_be_filled_in_has_a_fault(content: str, fault: str) -> None:
    (found,) = faults(template(content))
    assert fault in found


def test_a_good_template_has_no_fault() -> None:
    assert (
        faults(template("{% for x in context.rows %}{{ loop.index }} {{ x }}{% endfor %}", "{{ range(3) | list }}"))
        == []
    )
