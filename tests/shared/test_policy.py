"""The part of headrace.toml that may change while everything runs: what it can say, and every way of saying it wrong."""

import hashlib
import tomllib

import pytest

from shared.config import Limits
from shared.lifecycle import Lane
from shared.policy import LANES, Alias, CacheRule, Key, LaneRule, Policy, Producer, Shadow, Target, Tenant
from shared.policy_file import parse

MODELS = ["small", "large"]
LIMITS = Limits(results_kept_s=3600, waiting_s=7200, run_s=600)
DIGEST = hashlib.sha256(b"hr-ann").hexdigest()


def read(text: str) -> tuple[Policy, list[str]]:
    faults: list[str] = []
    return parse(tomllib.loads(text), MODELS, LIMITS, faults), faults


def valid(text: str) -> Policy:
    policy, faults = read(text)
    assert faults == []
    return policy


def test_nothing_said_is_the_default_policy() -> None:
    assert valid("") == Policy()


def test_lane_keeps_what_the_file_does_not_say() -> None:
    policy = valid("[lanes.batch]\nshare = 0.5\n[lanes.interactive]\nrun_s = 60\nwaiting_s = 120")
    assert policy.lanes == {
        Lane.INTERACTIVE: LaneRule(share=0.7, run_s=60.0, waiting_s=120),
        Lane.NORMAL: LANES[Lane.NORMAL],
        Lane.BATCH: LaneRule(share=0.5, slots=0.5),
    }


def test_tenants_keys_and_producers() -> None:
    policy = valid(
        f"""
        keys_required = true
        affinity = 0.5
        [tenants.acme]
        weight = 3
        running = 32
        queued = 1000
        requests_per_s = 20
        tokens_per_min = 100_000
        batch_tokens = 50_000_000
        [tenants."*"]
        weight = 0.5
        [keys.ann]
        tenant = "acme"
        sha256 = "{DIGEST}"
        requests_per_s = 2.5
        [producers.billing]
        tenant = "acme"
        """
    )
    acme = Tenant(weight=3, running=32, queued=1000, requests_per_s=20, tokens_per_min=100_000, batch_tokens=50_000_000)
    assert policy.tenants == {"acme": acme, "*": Tenant(weight=0.5)}
    assert policy.tenant("acme").weight == 3
    assert policy.tenant("somebody").weight == 0.5
    assert policy.keys == {"ann": Key(tenant="acme", sha256=DIGEST, requests_per_s=2.5)}
    assert policy.producers == {"billing": Producer(tenant="acme")}
    assert (policy.keys_required, policy.affinity) == (True, 0.5)


def test_aliases_templates_and_cache_rules() -> None:
    policy = valid(
        """
        [aliases.best]
        targets = [{ model = "large", weight = 9 }, { model = "small", variant = "trial" }]
        fallbacks = ["small"]
        shadow = { model = "small", share = 0.05 }
        [templates.summary]
        description = "In one sentence."
        model = "best"
        messages = [{ role = "system", content = "Sum up." }, { role = "user", content = "{{ input_text }}" }]
        options = { temperature = 0, stop = ["."] }
        [[cache]]
        template = "summary"
        ttl_s = 3600
        when = "always"
        [[cache]]
        route = "/v1/completions"
        ttl_s = 60
        shared = true
        """
    )
    assert policy.aliases["best"] == Alias(
        targets=[Target(model="large", weight=9), Target(model="small", variant="trial")],
        fallbacks=["small"],
        shadow=Shadow(model="small", share=0.05),
    )
    assert policy.templates["summary"].options == {"temperature": 0, "stop": ["."]}
    assert [message.role for message in policy.templates["summary"].messages] == ["system", "user"]
    assert policy.cache == [
        CacheRule(ttl_s=3600, template="summary", when="always"),
        CacheRule(ttl_s=60, route="/v1/completions", shared=True),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("keys_required = 1", "keys_required is 1: Expected `bool | null`, got `int`"),
        ("affinity = 1.5", "affinity is 1.5: Expected `float` <= 1"),
        ("lanes = 3", "lanes is 3: expected a table, [lanes]"),
        ("[lanes.batsh]", "lanes.batsh: unknown; did you mean lanes.batch?"),
        ("[lanes.batch]\nshare = 0", "lanes.batch.share is 0: Expected `float` > 0.0"),
        ("[lanes.batch]\nslot = 1", "lanes.batch.slot: unknown; did you mean lanes.batch.slots?"),
        ("[lanes.batch]\nwaiting_s = 9000", "lanes.batch.waiting_s is 9000: at most 7200 (limits.waiting_s)"),
        ("[lanes.batch]\nrun_s = 601", "lanes.batch.run_s is 601.0: at most 600 (limits.run_s)"),
        ("[lanes.normal]\nslots = 0.4", "lanes.batch.slots is 0.5: at most 0.4 (lanes.normal.slots)"),
        ("tenants = []", "tenants is []: expected a table, [tenants]"),
        ("[tenants]\nann = 3", "tenants.ann is 3: expected a table, [tenants.ann]"),
        ("[tenants.ann]\nweight = inf", "tenants.ann.weight is inf: Expected `float` <= 1000000.0"),
        ("[tenants.ann]\nqueued = -1", "tenants.ann.queued is -1: Expected `int` >= 0"),
        ("[tenants.ann]\nrequests = 3", "tenants.ann.requests: unknown; did you mean tenants.ann.requests_per_s?"),
        ("[tenants.'a b']", "tenants.'a b': a name is 1 to 128 letters, digits and the signs _ . : @ -"),
        ("[tenants.'{x}']", "tenants.'{x}': a name is"),
        ("[keys.'*']", "keys.'*': a name is"),
        ("[producers.p]\ntenant = 'ann'", "producers.p.tenant is 'ann': there is no [tenants.ann]"),
        ("[tenants.'*']\n[producers.p]\ntenant = '*'", "producers.p.tenant is '*': a name is 1 to 128 letters"),
        ("[tenants.ann]\n[producers.p]\ntenant = 'anm'", "there is no [tenants.anm]; did you mean ann?"),
        ("[aliases.small]\ntargets = [{ model = 'large' }]", "aliases.small: a pool serves a model of that name"),
        ("[aliases.'']\ntargets = [{ model = 'large' }]", "aliases.'': a name is 1 to 200 characters"),
        ('[aliases."a\\nb"]\ntargets = [{ model = "large" }]', r"aliases.'a\nb': a name is 1 to 200 characters, all of them pr"),
        ("[aliases.x]", "aliases.x.targets is missing"),
        ("[aliases.x]\ntargets = []", "aliases.x.targets is []: Expected `array` of length >= 1"),
        ("[aliases.x]\ntargets = ['small']", "aliases.x.targets is ['small']: Expected `object`, got `str`"),
        ("[aliases.x]\ntargets = [{ weight = 1 }]", "aliases.x.targets[0].model is missing"),
        ("[aliases.x]\ntargets = [{ model = 'small', wait = 1 }]", "did you mean aliases.x.targets[0].weight?"),
        ("[aliases.x]\ntargets = [{ model = 'smal' }]", "aliases.x.targets[0].model is 'smal': no pool serves it; did you"),
        ("[aliases.x]\ntargets = [{ model = 'y' }]\n[aliases.y]\ntargets = [{ model = 'small' }]", "'y': no pool serves it"),
        ("[aliases.x]\ntargets = [{ model = 'small' }, { model = 'small' }]", "the variant 'small' is there twice"),
        (
            '[aliases.x]\ntargets = [{ model = "small", variant = "a\\r\\nb" }]',
            r"aliases.x.targets[0].variant is 'a\r\nb': printable characters only",
        ),
        ("[aliases.x]\ntargets = [{ model = 'small' }]\nfallbacks = ['lame']", "aliases.x.fallbacks[0] is 'lame'"),
        ("[aliases.x]\ntargets = [{ model = 'small' }]\nfallbacks = ['large', 'large']", "fallbacks: 'large' is there twice"),
        ("[aliases.x]\ntargets = [{ model = 'small' }]\nshadow = { model = 's' }", "aliases.x.shadow.model is 's'"),
        (
            "[aliases.x]\ntargets = [{ model = 'small' }]\nshadow = { model = 'large', tenant = 'bob' }",
            "aliases.x.shadow.tenant is 'bob': there is no [tenants.bob]",
        ),
        ("[templates.t]", "templates.t.messages is missing"),
        ("[templates.t]\nmessages = [{ role = 'user' }]", "templates.t.messages[0].content is missing"),
        ("[templates.default]\nmessages = [{ role = 'user', content = '' }]", "templates.default: this one is built in"),
        ("[templates.t]\nmessages = [{ role = 'user', content = '{{ x' }]", "templates.t.messages[0].content, line 1"),
        ("[templates.t]\nmessages = [{ role = 'user', content = '{{ x }}' }]", "templates.t.messages[0].content: no variable"),
        (
            "[templates.t]\nmodel = 'smal'\nmessages = [{ role = 'user', content = '' }]",
            "templates.t.model is 'smal': neither a pool's model nor an alias; did you mean small?",
        ),
        (
            "[templates.t]\noptions = { stream = true }\nmessages = [{ role = 'user', content = '' }]",
            "templates.t.options.stream: options cannot say this",
        ),
        ("cache = { ttl_s = 1 }", "cache is {'ttl_s': 1}: expected tables, [[cache]]"),
        ("[[cache]]", "cache[0].ttl_s is missing"),
        ("[[cache]]\nttl_s = 3601", "cache[0].ttl_s is 3601: at most 3600 (limits.results_kept_s)"),
        ("[[cache]]\nttl_s = 1\nroute = '/v1/chat'", "cache[0].route is '/v1/chat': allowed: /v1/chat/completions, /v1/chat/completions/batch, /v1/com"),
        ("[[cache]]\nttl_s = 1\nwhen = 'never'", "cache[0].when is 'never': allowed: deterministic, always"),
        ("[[cache]]\nttl_s = 1\n[[cache]]\nttl_s = 2", "cache[1] is never taken: cache[0] fits all that it fits"),
        (
            "[[cache]]\nttl_s = 1\n[[cache]]\nttl_s = 0\n[[cache]]\nttl_s = 2\ntemplate = 'default'",
            "cache[2] is never taken: cache[0] fits all that it fits; put that one behind it",
        ),
        (
            "[[cache]]\nttl_s = 1\nwhen = 'always'\nroute = '/v1/chat/completions'\n[[cache]]\nttl_s = 2\ntemplate = 'default'",
            "cache[1] is never taken",
        ),
        (
            "[[cache]]\nttl_s = 1\ntemplate = 'default'\nroute = '/v1/completions'",
            "cache[0] is never taken: a template makes a chat",
        ),
        ("[[cache]]\nttl_s = 1\ntemplate = 'sum'", "cache[0].template is 'sum': there is no such template; known: default"),
    ],
)  # fmt: skip
def test_fault_is_told_with_its_place_and_what_is_allowed(text: str, fault: str) -> None:
    told = read(text)[1]
    assert [line for line in told if fault in line], told


def test_every_fault_is_told_at_once() -> None:
    told = read("[tenants.ann]\nweight = 0\nrunning = -1\n[lanes.fast]\n[[cache]]\nttl_s = 0\n[producers.p]")[1]
    assert len(told) == 5


def test_tenant_with_another_fault_is_not_missing_too() -> None:
    assert len(read("[tenants.ann]\nweight = 0\n[producers.p]\ntenant = 'ann'")[1]) == 1


def test_any_tenant_may_be_named_where_there_is_one_for_everybody() -> None:
    valid("[tenants.'*']\n[producers.p]\ntenant = 'ann'")


def test_shadow_that_names_no_tenant_needs_none() -> None:
    valid("[aliases.x]\ntargets = [{ model = 'small' }]\nshadow = { model = 'large' }")


def test_cache_rules_that_overlap_are_all_taken_for_something() -> None:
    rules = ["when = 'deterministic'", "when = 'always'\nroute = '/v1/completions'", "when = 'always'"]
    assert len(valid("".join(f"[[cache]]\nttl_s = 1\n{rule}\n" for rule in rules)).cache) == 3
    narrow = "[[cache]]\nttl_s = 1\ntemplate = 'default'\n[[cache]]\nttl_s = 2\nroute = '/v1/chat/completions'\n"
    assert len(valid(narrow + "[[cache]]\nttl_s = 3\n").cache) == 3


def test_two_keys_may_not_be_the_same() -> None:
    told = read("".join(f"[keys.{name}]\ntenant = 'x'\nsha256 = '{DIGEST}'\n" for name in "ab") + "[tenants.x]")[1]
    assert told == ["keys.b.sha256 is that of keys.a: no two keys may be the same"]


@pytest.mark.parametrize(
    "text",
    [
        "keys = 'hr-secret'",
        "[keys]\nann = 'hr-secret'",
        "[keys.ann]\ntenant = 'x'\nsha256 = 'hr-secret'",
        "[keys.ann]\ntenant = 'x'\nsha256 = ['hr-secret']",
        "[keys.ann]\ntenant = 'x'\nsecret = 'hr-secret'",
    ],
)
def test_key_that_was_put_in_the_wrong_place_is_not_shown(text: str) -> None:
    """Faults go to logs, and a key in a log is a key to change."""
    told = read(text)[1]
    assert told
    assert "hr-secret" not in "\n".join(told)


def test_digest_in_the_wrong_form_is_told_with_the_remedy() -> None:
    told = read(f"[tenants.x]\n[keys.ann]\ntenant = 'x'\nsha256 = '{DIGEST.upper()}'")[1]
    assert told == ["keys.ann.sha256: expected 64 hex digits, in lower case; `headrace keys new` makes them"]
