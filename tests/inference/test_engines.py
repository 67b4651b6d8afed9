"""The engines by name: the built-in ones, and those of installed packages."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.inference.engine import Call
from services.inference.engines import make_engine
from shared.config import Limits, Pool, parse
from shared.engine_options import OPTIONS, EchoOptions, OpenaiOptions, PythonOptions, Upstream, engine_names
from shared.errors import ConfigError
from tests.support.engines import called

DOCUMENT = Path(__file__).parents[2] / "docs" / "engines.md"
POOL = Pool(
    model="m",
    openai=OpenaiOptions(upstreams=[Upstream(url="http://one")]),
    python=PythonOptions(callable="json:loads"),
    echo=EchoOptions(tokens_per_s=1),
)
SERVED = '[pools.x]\nmodel = "m"\nengine = "shouting"\n'


@pytest.fixture
def shouting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of the document, installed."""
    code = DOCUMENT.read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "shouting").mkdir()
    (tmp_path / "shouting" / "__init__.py").touch()
    (tmp_path / "shouting" / "engine.py").write_text(code)
    (tmp_path / "shouting-1.dist-info").mkdir()
    (tmp_path / "shouting-1.dist-info" / "METADATA").write_text("Name: shouting\nVersion: 1\n")
    points = "shouting = shouting.engine:ShoutingEngine\nmissing = shouting.none:X\nwrong = shouting.engine:Chunk\n"
    (tmp_path / "shouting-1.dist-info" / "entry_points.txt").write_text(f"[headrace.engines]\n{points}")
    monkeypatch.syspath_prepend(tmp_path)
    engine_names.cache_clear()
    yield
    engine_names.cache_clear()
    for name in ("shouting", "shouting.engine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.vllm] * (name == "vllm")) for name in OPTIONS])
def test_each_built_in_engine_is_made_by_its_name(name: str) -> None:
    assert make_engine(POOL, name, Limits()).name == name


def test_an_engine_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="there is no engine 'echoes'; did you mean echo"):
        make_engine(POOL, "echoes", Limits())
    with pytest.raises(ConfigError, match=r"pools\.x\.engine is 'onnx': allowed: vllm, echo, openai, python"):
        parse("f", b'[pools.x]\nmodel = "m"\nengine = "onnx"\n')


def test_an_engine_lacks_what_it_needs_only_where_it_serves() -> None:
    for engine, field in (("openai", "upstreams"), ("python", "callable")):
        with pytest.raises(ConfigError, match=rf"pools\.x\.{engine}\.{field} is missing"):
            parse("f", f'[pools.x]\nmodel = "m"\nengine = "{engine}"\n'.encode())
        with pytest.raises(ConfigError, match=f"the engine {engine} needs {field}"):
            make_engine(Pool(model="m"), engine, Limits())
    assert parse("f", b'[pools.x]\nmodel = "m"\n[pools.x.openai]\nconnect_s = 1.0\n').pools["x"].openai.connect_s == 1


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        ('url = "ftp://x"', "upstreams[0].url is 'ftp://x': expected http:// or https://"),
        ('url = "http://me:secret@x"', "upstreams[0].url holds an @"),
        ('url = "http://x?key=1"', "upstreams[0].url is 'http://x?key=1'"),
        ('url = "http://x"\nslot = 1', "upstreams[0].slot: unknown; did you mean"),
        ('url = "http://x"\nslots = 0', "upstreams[0].slots is 0"),
        ("", "upstreams[0].url is missing"),
        ('url = "http://x"\n[pools.x.openai.lanes.batch]\nfirst_s = 1', "lanes"),
        ('url = "http://x"\n[pools.x.openai.lanes.slow]\nfirst_byte_s = 1', "lanes"),
        ('url = "http://x"\n[[pools.x.openai.upstreams]]\nurl = "http://x"', "upstreams[1] is there twice"),
    ],
)
def test_a_faulty_upstream_is_told_with_its_place(table: str, fault: str) -> None:
    text = f'[pools.x]\nmodel = "m"\nengine = "openai"\n[[pools.x.openai.upstreams]]\n{table}\n'
    with pytest.raises(ConfigError) as caught:
        parse("f", text.encode())
    assert f"pools.x.openai.{fault}" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("shouting")
async def test_the_engine_of_the_document_serves_a_pool_once_its_package_is_installed() -> None:
    pool = parse("f", f'{SERVED}[pools.x.shouting]\nword = "hey"\n'.encode()).pools["x"]
    engine = make_engine(pool, pool.engine, Limits())
    await engine.start()
    _, answer = await called(engine, Call(task_id="t1", route="/shout", body=b"{}", priority=1))
    assert (engine.capacity().slots, answer.status, answer.body) == (8, 200, b'{"said": "HEY"}')
    await engine.stop()


@pytest.mark.usefixtures("shouting")
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (SERVED, r"pools\.x\.shouting\.word is missing"),
        (
            f"{SERVED}[pools.x.shouting]\nwrod = 'a'\n",
            r"pools\.x\.shouting\.wrod: unknown; did you mean pools\.x\.shouting\.word",
        ),
        (f"{SERVED}[pools.x.shouting]\nword = 1\n", r"pools\.x\.shouting\.word is 1"),
        (SERVED.replace("shouting", "missing"), r"pools\.x\.missing: .*cannot be imported: ModuleNotFoundError"),
        (SERVED.replace("shouting", "wrong"), r"pools\.x\.wrong: .*options_type"),
        (
            SERVED.replace("shouting", "shoutin"),
            r"'shoutin': allowed: vllm, echo, openai, python, missing, shouting, wrong",
        ),
    ],
)
def test_faults_of_an_installed_engine_are_told_like_those_of_a_built_in_one(text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        parse("f", text.encode())
