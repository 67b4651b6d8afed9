"""Templates: messages with places for a task's own words, in the language of Jinja, rendered in its sandbox.

The operator writes them, producers fill them in. A value is only ever put in, never read as a template, and reaches no
attribute of Python: the sandbox refuses names that begin with an underscore, and whatever changes a value.
Blocks leave no blank lines behind (`trim_blocks`, `lstrip_blocks`), as in the chat templates of models.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import msgspec
from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2 import Template as Compiled
from jinja2.sandbox import ImmutableSandboxedEnvironment
from msgspec import Struct

from shared.errors import BodyTooLarge, TemplateFailed, TemplateNotFound
from shared.policy import Policy, Template

DEFAULT = "default"
"""Built in: the text is the user's message."""
VARIABLES = ("input_text", "context", "user")


class Filled(Struct, frozen=True):
    """What a task says for the places of its template."""

    input_text: str
    context: Mapping[str, Any]
    user: str


def known(policy: Policy) -> list[str]:
    return [DEFAULT, *(name for name in policy.templates if name != DEFAULT)]


def template_of(policy: Policy, name: str) -> Template | None:
    """None: the one that is built in. Raises: TemplateNotFound."""
    if name == DEFAULT:
        return None
    template = policy.templates.get(name)
    if template is None:
        names = known(policy)
        raise TemplateNotFound(name, get_close_matches(name, names), names)
    return template


def render(policy: Policy, name: str, filled: Filled, most_bytes: int) -> list[dict[str, str]]:
    """The messages of a chat. Raises: TemplateNotFound, TemplateFailed, BodyTooLarge."""
    template = template_of(policy, name)
    if template is None:
        return [{"role": "user", "content": filled.input_text}]
    values = msgspec.structs.asdict(filled)
    messages = []
    for message, compiled in zip(template.messages, _compiled(policy, name), strict=True):
        try:
            messages.append({"role": message.role, "content": _fill(compiled, values, most_bytes)})
        except BodyTooLarge:
            raise
        except UndefinedError as error:
            path = _path_of(template, str(error))
            raise TemplateFailed(name, f"`{path}` is missing", param=path) from None
        except Exception as error:  # filters and operators raise anything at what a producer sent
            raise TemplateFailed(name, f"{type(error).__name__}: {error}") from error
    return messages


def _fill(compiled: Compiled, values: dict[str, Any], most_bytes: int) -> str:
    """Piece by piece, so that loops over what a producer sent end at the limit, not when memory does. Raises: BodyTooLarge."""
    pieces, size = [], 0
    for piece in compiled.generate(values):
        size += len(piece)  # a character is a byte or more
        if size > most_bytes:
            raise BodyTooLarge(most_bytes)
        pieces.append(piece)
    return "".join(pieces)


def faults(template: Template) -> list[str]:
    """Why it can never be rendered, one line each: place within the template, and reason."""
    found = []
    for number, message in enumerate(template.messages):
        where = f"messages[{number}].content"
        try:
            _environment.from_string(message.content)
            tree = _environment.parse(message.content)
            unknown = meta.find_undeclared_variables(tree) - {*VARIABLES}
        except TemplateSyntaxError as error:
            found.append(f"{where}, line {error.lineno}: {error.message}")
        else:
            found += [f"{where}: no variable `{name}`; known: {', '.join(VARIABLES)}" for name in sorted(unknown)]
            others = tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))
            found += [f"{where}, line {node.lineno}: a template cannot use another one" for node in others]
    return found


def variables(template: Template) -> list[str]:
    """What it puts in: `input_text`, `user`, `context`, and of the context which fields, as `context.<field>`."""
    found: dict[str, None] = {}
    for message in template.messages:
        tree = _environment.parse(message.content)
        found |= dict.fromkeys(sorted(meta.find_undeclared_variables(tree)))
        found |= dict.fromkeys(_paths(tree))
    within = any(path.startswith("context.") for path in found)
    return [path for path in found if path != "context" or not within]


def _paths(tree: nodes.Template) -> Iterator[str]:
    """Fields of the context that are named outright: `context.city`, `context["city"]`."""
    for field in tree.find_all(nodes.Getattr):
        if isinstance(field.node, nodes.Name) and field.node.name == "context":
            yield f"context.{field.attr}"
    for item in tree.find_all(nodes.Getitem):
        named = isinstance(item.arg, nodes.Const) and isinstance(item.arg.value, str)
        if named and isinstance(item.node, nodes.Name) and item.node.name == "context":
            yield f"context.{item.arg.as_const()}"


class _Missing(StrictUndefined):
    """Says the name only: which field of which object it was, `_path_of` finds out."""

    @property
    def _undefined_message(self) -> str:
        return str(self._undefined_hint or self._undefined_name)


def _path_of(template: Template, field: str) -> str:
    return next((path for path in variables(template) if path in (field, f"context.{field}")), field)


def _plain_json(value: Any) -> str:
    """Jinja's own `tojson` writes < and > as escapes, for web pages."""
    return msgspec.json.encode(value).decode()


_environment = ImmutableSandboxedEnvironment(undefined=_Missing, trim_blocks=True, lstrip_blocks=True)
_environment.filters["tojson"] = _plain_json

_cache: dict[str, list[Compiled]] = {}
_cached: Mapping[str, Template] | None = None


def _compiled(policy: Policy, name: str) -> list[Compiled]:
    """Compiled once, for as long as the templates of the policy are these very ones."""
    global _cached
    if _cached is not policy.templates:
        _cache.clear()
        _cached = policy.templates
    compiled = _cache.get(name)
    if compiled is None:
        sources = policy.templates[name].messages
        compiled = _cache[name] = [_environment.from_string(message.content) for message in sources]
    return compiled
