"""What the documents list is what the code has: files, keys, scripts, metrics, variables, settings, messages, close codes."""

import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.metrics import MetricWrapperBase

from services.notifier import frames
from shared import config, errors, keys, policy, policy_file, record, request, shorthand
from shared.engine_options import OPTIONS, Upstream
from shared.lifecycle import Lane
from shared.messages import Reply
from shared.settings import SHARED

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("ingress", "scheduler", "inference", "notifier")
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]


def text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def table(section: str) -> Iterator[list[str]]:
    """Rows of all tables, without their heads; cells without backticks."""
    lines = section.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith(("| `", "| 4")) and not following.startswith("|--"):
            yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def fields(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(document: Path) -> None:
    said = document.read_text()
    named = set(re.findall(r"`((?:services|shared|deploy|tests|docs)/[\w./-]+)`", said))
    linked = {
        str((document.parent / path).relative_to(ROOT)) for path in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", said)
    }
    assert [path for path in named | linked if not (ROOT / path).exists()] == []


def test_the_architecture_lists_every_key() -> None:
    section = text("architecture.md").partition("## Keys")[2].partition("\n## ")[0]
    shard = keys.shard_keys("smol", 0)
    made = {value for value in vars(keys).values() if isinstance(value, str) and value.startswith(keys.PREFIX)}
    made = (made - {keys.PREFIX}) | {keys.reply("<name>")}
    made.add(re.sub(r"\{i\.\d+\}", "{i.<n>}", keys.idempotency("<tenant>", "<key>")))
    of_shard = {key for key in vars(shard).values() if key != shard.base and str(key).startswith(shard.base)}
    of_shard |= {
        *(shard.backlog(lane, "<tenant>") for lane in Lane),
        shard.running("<tenant>"),
        shard.prefix("<digest>"),
        shard.group("<digest>"),
        shard.kept_answer("<digest>"),
        shard.flight("<digest>"),
        shard.followers("<digest>"),
        *shard.turns,
        *shard.rested,
        shard.task("<id>"),
        shard.log("<id>"),
        shard.work("<worker>"),
        shard.session("<s>"),
        shard.tenant("<x>"),
    }
    made |= {keys.door("<producer>")}
    made |= {keys.batch("<batch>", what) for what in ("state", "open", "ended", "unfiled")} | {
        keys.batches_of("<tenant>")
    }
    made |= {keys.file("<id>"), keys.file_parts("<id>"), keys.files_of("<tenant>")}
    made |= {keys.quota("<tenant>", what) for what in ("reserved", "looks", "requests", "tokens")}
    made |= {re.sub(r"(backlog|turns|rested):\w+", r"\1:<lane>", key.replace("{smol.0}", "{t}")) for key in of_shard}
    made.add(shard.bus(0).replace("{smol.0}", "{t}").removesuffix("0") + "<p>")
    assert {row[0] for row in table(section)} == made


def test_the_architecture_lists_every_script() -> None:
    section = text("architecture.md").partition("## Scripts")[2].partition("\n## ")[0]
    scripts = {str(path.relative_to(ROOT)) for part in ("shared", "services") for path in (ROOT / part).rglob("*.lua")}
    assert {row[0] for row in table(section)} == scripts


def test_the_architecture_lists_every_field_of_a_task() -> None:
    section = text("architecture.md").partition("## Fields of a task")[2].partition("\n## ")[0]
    told = {name for row in table(section) for name in row[0].split(", ")}
    written: set[str] = set()
    for path in (path for part in ("shared", "services") for path in (ROOT / part).rglob("*.lua")):
        for pairs in re.findall(r"'HSET', (?:task\.key|task|key),([^)]*)\)", path.read_text()):
            written |= set(re.findall(r"'(\w+)'", ",".join(pairs.split(",")[::2])))
    made = (ROOT / "shared" / "lua" / "submit.lua").read_text()
    kept, fixed = re.search(r"KEPT = \{(.*?)\}", made, re.DOTALL), re.search(r"fields = \{(.*?)\}", made, re.DOTALL)
    assert kept is not None
    assert fixed is not None
    written |= set(re.findall(r"'(\w+)'", kept[1] + fixed[1])) - {"pending"}
    assert told == written
    assert set(record.FIELDS) <= told


@pytest.mark.parametrize("service", SERVICES)
def test_the_operations_list_every_metric_of_a_service(service: str) -> None:
    module = importlib.import_module(f"services.{service}.metrics")
    made = {}
    for metric in vars(module).values():
        if isinstance(metric, MetricWrapperBase):
            (described,) = metric.describe()
            suffix = "_total" if described.type == "counter" else ""
            made[described.name + suffix] = (
                described.type,
                [name for name in metric._labelnames if name not in ("shard",)],
            )
    section = re.search(rf"^{service} ?\(?.*:\n\n((?:\|.*\n)+)", text("operations.md"), re.MULTILINE)
    assert section is not None
    told = {row[0]: (row[1], [label for label in row[2].split(", ") if label]) for row in table(section[1])}
    if service == "scheduler":  # the pool is said once, above the table
        made = {name: (kind, [label for label in labels if label != "pool"]) for name, (kind, labels) in made.items()}
    assert told == made


def test_the_configuration_lists_every_variable_with_its_default() -> None:
    made: dict[str, Any] = dict.fromkeys(SHARED)
    for service in SERVICES:
        kind = importlib.import_module(f"services.{service}.settings").Settings
        own = {name: field for name, field in fields(kind).items() if name not in SHARED.values()}
        made |= {f"HEADRACE_{service.upper()}_{name.upper()}": field.default for name, field in own.items()}
    told = {
        row[0]: row[1] for row in table(text("configuration.md")) if row[0] in made or row[0].startswith("HEADRACE_")
    }
    assert told.keys() == made.keys()
    assert [name for name, default in made.items() if default not in (None, "") and told[name] != str(default)] == []


SETTINGS = {
    "At the top of the file:": config.Safety,
    "**`[pools.<name>]`**": config.Pool,
    **{f"**`[pools.<name>.{engine}]`**": options for engine, options in OPTIONS.items()},
    "An upstream:": Upstream,
    "**`[limits]`**": config.Limits,
    "**`[lanes.interactive]`**": policy.LaneRule,
    "**`[tenants.<name>]`**": policy.Tenant,
    "**`[keys.<name>]`**": policy.Key,
    "**`[producers.<name>]`**": policy.Producer,
    "**`[aliases.<name>]`**": policy.Alias,
    "A target:": policy.Target,
    "A shadow:": policy.Shadow,
    "**`[templates.<name>]`**": policy.Template,
    "**`[[cache]]`**": policy.CacheRule,
    "**`[webhooks]`**": policy.Webhooks,
    "**`[webhooks.<name>]`**": policy.Endpoint,
}
"""What each table of docs/configuration.md describes, by the words before it."""


@pytest.mark.parametrize(("words", "kind"), SETTINGS.items())
def test_the_configuration_lists_every_setting_of_the_file_with_its_default(
    words: str, kind: type[msgspec.Struct]
) -> None:
    section = text("configuration.md").partition("## headrace.toml")[2].partition("\n## ")[0]
    found = re.search(rf"^{re.escape(words)}(?:(?!\n\|)[\s\S])*((?:\n\|.*)+)", section, re.MULTILINE)
    assert found is not None
    told = {row[0]: row[1] for row in table(found[1])}
    made = {name: field for name, field in fields(kind).items() if name not in {*OPTIONS, "installed", "endpoints"}}
    if kind is config.Safety:
        made |= {name: fields(policy.Policy)[name] for name in policy_file.SCALARS}
    assert told.keys() == made.keys()
    for name, field in made.items():
        if (kind, name) in ((policy.LaneRule, "share"), (policy.LaneRule, "slots")):
            continue  # of each lane its own
        if field.required:
            assert told[name] == "required", name
        elif field.default is not msgspec.NODEFAULT and not isinstance(field.default, dict):
            assert default_in(told[name]) == field.default, name


def test_the_configuration_says_the_defaults_of_every_lane() -> None:
    section = text("configuration.md").partition("**`[lanes.interactive]`**")[2].partition("**`[tenants")[0]
    told = {row[0]: [float(value) for value in row[1].split(", ")] for row in list(table(section))[:2]}
    assert told == {name: [getattr(rule, name) for rule in policy.LANES.values()] for name in ("share", "slots")}


def default_in(cell: str) -> object:
    """What a cell of the column `default` means."""
    if cell == "none" or cell.startswith("limits."):
        return None
    return tomllib.loads(f"x = {cell}")["x"]


def test_the_stream_door_lists_every_field_and_every_refusal() -> None:
    document = text("stream-door.md")
    asked, _, refused = document.partition("## Refusals")
    said = set(re.findall(r"`(\w+)`", asked))
    for kind in (shorthand.Shorthand, request.Envelope, Reply):
        assert fields(kind).keys() - {"type"} <= said
    codes = {kind.code for kind in refusals(errors.RequestError)}
    not_at_this_door = {"file_not_found", "file_too_large", "no_object_store"} | {
        "dead_letter_not_found",
        "invalid_api_key",
    }
    not_at_this_door |= {"body_gone", "batch_not_found", "batch_over", "response_not_found", "not_ended"}
    assert codes - not_at_this_door == {row[0] for row in table(refused)}


def refusals(kind: type[errors.RequestError]) -> Iterator[type[errors.RequestError]]:
    for child in kind.__subclasses__():
        yield child
        yield from refusals(child)


def test_the_websocket_document_lists_every_message_field_and_close_code() -> None:
    part = {part.partition("\n")[0]: part for part in text("websocket.md").split("\n## ")}
    for base, title in ((frames.Inbound, "Client to server"), (frames.Outbound, "Server to client")):
        rows = table(part[title].partition("\n### ")[0])
        told = {row[0]: set(re.findall(r"\w+", " ".join(row[1:]))) for row in rows}
        made = {str(kind.__struct_config__.tag): fields(kind).keys() for kind in messages(base)}
        assert told.keys() == made.keys()
        assert {
            name: missing for name, names in made.items() if (missing := names - told[name] - {"id", "task", "c"})
        } == {}
    assert {row[0] for row in table(part["Closing"])} == {str(int(code)) for code in frames.Close}


def messages(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    """Those that are sent: a class without a tag of its own only gathers fields."""
    for child in kind.__subclasses__():
        if child.__struct_config__.tag != child.__name__:
            yield child
        yield from messages(child)
