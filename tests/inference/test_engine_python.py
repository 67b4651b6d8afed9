import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from services.inference.engine import Answer, Call, CannotResume, Chunk, EngineDead
from services.inference.engine_python import PythonEngine
from services.inference.python_batches import Item, Job
from services.inference.python_frames import Body, Fault, Ready, frame
from services.inference.python_output import LINES_PER_S
from services.inference.python_places import CHUNK_BYTES, LEAKS, STARTS, gpus
from services.inference.python_process import Process
from services.inference.python_results import result
from shared.engine_options import PythonOptions
from shared.errors import ConfigError
from tests.support.engines import called
from tests.support.processes import alive, children
from tests.support.waiting import wait_blocking, wait_until

FOLDER = str(Path(__file__).parent)
ROUTE = "/v1/completions"
HANG_S = 2.0
"""Time for one that hangs; the sound ones that run beside it have as much, on a machine that may be busy."""

Make = Callable[..., Awaitable[PythonEngine]]


def built(name: str, *, slots: int = 0, environ: dict[str, str] | None = None, **options: Any) -> PythonEngine:
    chosen = PythonOptions(callable=f"engine_python_callables:{name}", path=FOLDER, **options)
    own = {**os.environ, **environ} if environ else None  # noqa: TID251
    return PythonEngine(model="m", options=chosen, slots=slots, environ=own, backoff_s=0.001)


@pytest.fixture
async def make(no_task_left: None) -> AsyncIterator[Make]:
    """Engines that are started, and stopped at the end, when no process may be left."""
    before, engines = set(children(os.getpid())), []

    async def started(name: str, **given: Any) -> PythonEngine:
        engines.append(built(name, **given))
        await engines[-1].start()
        return engines[-1]

    yield started
    for engine in engines:
        await engine.stop()
    assert set(children(os.getpid())) <= before


def call(priority: int = 1, route: str = ROUTE, task: str = "t", **body: Any) -> Call:
    return Call(task_id=task, route=route, body=msgspec.json.encode(body), priority=priority)


async def ask(engine: PythonEngine, **body: Any) -> tuple[int, Any]:
    _, answer = await called(engine, call(**body))
    return answer.status, msgspec.json.decode(answer.body)


async def ask_all(engine: PythonEngine, bodies: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    return await asyncio.gather(*(ask(engine, task=f"t{n}", **body) for n, body in enumerate(bodies)))


def error_of(answered: tuple[int, Any]) -> tuple[int, str, str]:
    status, body = answered
    assert body["error"]["message"].isprintable()
    return status, body["error"]["code"], body["error"]["message"]


# -- what a callable is


@pytest.mark.parametrize("name", ["double", "double_later"])
async def test_a_callable_gets_the_decoded_body_and_what_it_returns_is_the_answer(make: Make, name: str) -> None:
    engine = await make(name)
    status, body = await ask(engine, n=4)
    assert (status, body["double"]) == (200, 8)
    assert body["pid"] != os.getpid()


async def test_a_class_is_loaded_once_in_each_process(make: Make) -> None:
    engine = await make("Model", processes=2)
    answers = [body for _, body in await ask_all(engine, [{}] * 6)]
    assert {answer["loads"] for answer in answers} == {1}
    assert len({answer["pid"] for answer in answers}) == 2


async def test_an_async_model_is_loaded_in_the_loop_that_calls_it(make: Make) -> None:
    assert await ask(await make("AsyncModel")) == (200, {"same_loop": True})


async def test_bytes_come_with_their_content_type(make: Make) -> None:
    _, answer = await called(await make("act"), call(do="image"))
    assert answer == Answer(status=200, body=b"\x89PNG", content_type="image/png")


@pytest.mark.parametrize("kind", ["音/mpeg", "audio/mpeg; name=日本"])
def test_a_content_type_that_no_header_can_hold_is_refused(kind: str) -> None:
    assert isinstance(result((b"x", kind)), Fault)


async def test_results_of_numpy_are_json(make: Make) -> None:
    pytest.importorskip("numpy")
    engine = await make("Arrays", batch_size=2)
    assert await ask_all(engine, [{"n": 1}, {"n": 3}]) == [(200, [1.0, 0.5]), (200, [3.0, 1.5])]


async def test_standard_input_is_empty_and_not_the_engines_connection(make: Make) -> None:
    engine = await make("act")
    assert await ask(engine, do="input") == (200, {"input": ""})
    assert (await ask(engine, n=1))[0] == 200


# -- streams


@pytest.mark.parametrize("name", ["count", "count_async"])
async def test_a_generator_streams_what_it_yields(make: Make, name: str) -> None:
    chunks, answer = await called(await make(name), call(n=3, stream=True))
    assert [msgspec.json.decode(chunk.data) for chunk in chunks] == [{"number": n} for n in range(3)]
    assert answer == Answer(status=200, body=b"")


@pytest.mark.parametrize("name", ["count", "count_async"])
async def test_a_generator_that_fails_after_some_chunks_ends_with_an_error(make: Make, name: str) -> None:
    engine = await make(name)
    for do, status in (("raise", 500), ("refuse", 400), ("os._exit", 500)):
        chunks, answer = await called(engine, call(n=2, stream=True, do=do))
        assert (len(chunks), answer.status) == (2, status)


async def test_a_callable_may_stream_or_not_as_the_body_asks(make: Make) -> None:
    assert await ask(await make("count"), n=3) == (200, {"n": 3})


async def test_a_stream_is_not_continued(make: Make) -> None:
    engine = await make("count")
    published = Call(task_id="t", route=ROUTE, body=b'{"n":3}', priority=1, published=(Chunk(b"{}"),))
    with pytest.raises(CannotResume):
        await called(engine, published)
    assert engine.capacity().running == 0


# -- what goes wrong in one call


FAULTS = [
    ("refuse", 400, "invalid_request", "n must not be negative"),
    ("raise", 500, "callable_failed", "raised KeyError: 'weights'"),
    ("sys.exit", 500, "callable_failed", "called sys.exit(enough)"),
    ("object", 500, "callable_failed", "type object, which is no JSON"),
    ("bytes", 500, "callable_failed", "without a content type"),
    ("no type", 500, "callable_failed", "content type 'png\\r\\n'"),
    ("coroutine", 500, "callable_failed", "type coroutine, which is no JSON"),
]


@pytest.mark.parametrize("name", ["act", "act_async"])
async def test_a_call_that_fails_has_a_clear_error_and_its_process_goes_on(make: Make, name: str) -> None:
    engine = await make(name)
    _, before = await ask(engine)
    for do, status, code, words in FAULTS:
        made = error_of(await ask(engine, do=do))
        assert made[:2] == (status, code)
        assert words in made[2]
    assert await ask(engine) == (200, before)


async def test_a_body_that_is_no_json_is_refused_and_its_batch_goes_on(make: Make) -> None:
    engine = await make("batch", batch_size=2)
    broken = Call(task_id="b", route=ROUTE, body=b"{\xff", priority=1)
    (_, refused), (status, body) = await asyncio.gather(called(engine, broken), ask(engine, n=1))
    assert (refused.status, status, body["together"]) == (400, 200, 1)


async def test_a_route_that_is_not_served_is_refused(make: Make) -> None:
    engine = await make("double", routes=["/v1/embeddings"])
    status, code, message = error_of(await ask(engine, route=ROUTE, n=1))
    assert (status, code) == (404, "route_not_served")
    assert "/v1/embeddings" in message
    assert (await ask(engine, route="/v1/embeddings", n=1))[0] == 200


async def test_a_body_of_another_type_than_json_or_a_form_is_refused(make: Make) -> None:
    image = Call(task_id="t", route=ROUTE, body=b"\x89PNG", content_type="image/png", priority=1)
    _, answer = await called(await make("double"), image)
    assert answer.status == 415


# -- what ends a process


@pytest.mark.parametrize("turns", range(6))
async def test_a_process_that_is_given_up_in_the_moment_it_has_loaded_is_not_kept(turns: int) -> None:
    class Loading(Process):
        """Without a process."""

        def __init__(self) -> None:
            super().__init__(PythonOptions(callable="x:y"), "p", {}, lambda *_: None)
            self._reader = asyncio.StreamReader()

    process = Loading()
    loading = asyncio.create_task(process._load())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    process._reader.feed_data(frame(Ready(is_async=False)))
    for _ in range(turns):
        await asyncio.sleep(0)
    heeded = loading.cancel()
    await asyncio.wait([loading])
    assert loading.cancelled() is heeded


KILLERS = [
    ("os._exit", 500, "callable_died", "exit code 7"),
    ("segfault", 500, "callable_died", "SIGSEGV"),
    ("hang", 504, "callable_timeout", f"longer than {HANG_S:g} s (python.timeout_s)"),
    ("eat", 500, "callable_memory", "more than 200 (python.memory_mb)"),
]


@pytest.mark.parametrize(("do", "status", "code", "words"), KILLERS, ids=[do for do, *_ in KILLERS])
@pytest.mark.parametrize("name", ["act", "act_async"])
async def test_a_call_that_ends_its_process_costs_itself_only(
    make: Make, name: str, do: str, status: int, code: str, words: str
) -> None:
    engine = await make(name, timeout_s=HANG_S if do == "hang" else 60, memory_mb=200)
    _, before = await ask(engine)
    (made, (other, after)) = await asyncio.gather(ask(engine, do=do), ask(engine, task="other"))
    assert error_of(made)[:2] == (status, code)
    assert words in error_of(made)[2]
    assert other == 200
    assert (await ask(engine))[1]["pid"] not in (before["pid"], os.getpid())
    assert after["n"] is None


def test_a_call_that_runs_whenever_a_process_leaks_is_blamed_at_last() -> None:
    """With several processes it may never meet one that has run nothing before."""
    engine, item, over = built("act", memory_mb=200), Item("t", Body(b"{}"), 1), list[bool]()
    fate = Fault(500, "It held too much.", "callable_memory")
    for _ in range(LEAKS):
        job = Job([item], alone=True)
        leaked: Any = SimpleNamespace(jobs={1: job}, begun={1}, done=5, fate=fate, why=fate.message)
        engine._places._on_end(leaked)
        over.append(item.over)
    assert over == [False] * (LEAKS - 1) + [True]
    told = item.pieces.get_nowait()
    assert isinstance(told, Answer)
    assert b"callable_memory" in told.body


async def test_what_a_process_leaves_goes_to_an_idle_one_while_the_next_one_loads(make: Make, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    engine = await make(
        "SlowToLoad", processes=2, batch_size=2, batch_wait_ms=60_000, environ={"LOADS_WHEN": str(gate)}
    )
    gate.unlink()
    answers = await ask_all(engine, [{"n": 0}, {"do": "os._exit"}])
    assert [status for status, _ in answers] == [200, 500]
    gate.touch()


async def test_what_a_callable_has_started_ends_with_its_process(make: Make) -> None:
    engine = await make("act")
    (_, child), (_, fork) = await ask(engine, do="child"), await ask(engine, do="fork")
    await ask(engine, do="os._exit")
    await wait_until(lambda: not alive(child["child"]) and not alive(fork["fork"]), "its processes have ended")


async def test_a_process_that_ends_while_idle_is_replaced(make: Make) -> None:
    engine = await make("double")
    _, first = await ask(engine, n=1)
    os.kill(first["pid"], 9)
    await wait_until(lambda: not alive(first["pid"]), "it has ended")
    status, second = await ask(engine, n=1)
    assert (status, second["pid"] != first["pid"]) == (200, True)


async def test_an_engine_is_dead_when_a_process_cannot_be_started_any_more(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.touch()
    engine = await make("WhileFileIsThere", environ={"LOADS_WHILE": str(file)})
    await engine.health()
    file.unlink()
    killer, waiting = asyncio.create_task(ask(engine, do="os._exit")), asyncio.create_task(ask(engine, task="t2"))
    assert error_of(await killer)[:2] == (500, "callable_died")
    with pytest.raises(EngineDead, match=f"in {STARTS} tries"):
        await waiting
    with pytest.raises(EngineDead):
        await engine.health()


async def test_a_process_that_fails_to_start_is_tried_again(make: Make, tmp_path: Path, caplog: Any) -> None:
    file = tmp_path / "weights"
    file.touch()
    engine = await make("WhileFileIsThere", environ={"LOADS_WHILE": str(file)})
    file.unlink()
    await ask(engine, do="os._exit")
    await wait_until(lambda: "cannot be started, try 1" in caplog.text, "a try has failed")
    file.touch()
    assert (await ask(engine))[0] == 200


# -- batches


@pytest.mark.parametrize("name", ["batch", "batch_async"])
async def test_calls_run_together_in_batches_of_the_size(make: Make, name: str) -> None:
    engine = await make(name, batch_size=3, batch_wait_ms=60_000)
    answers = await ask_all(engine, [{"n": n} for n in range(6)])
    assert [(status, body["together"], body["n"]) for status, body in answers] == [(200, 3, n) for n in range(6)]


async def test_a_batch_that_does_not_fill_goes_after_its_wait(make: Make) -> None:
    engine = await make("batch", batch_size=100, batch_wait_ms=10)
    assert [body["together"] for _, body in await ask_all(engine, [{}, {}])] == [2, 2]


async def test_a_batch_may_fail_in_parts(make: Make) -> None:
    engine = await make("batch_of_its_own_errors", batch_size=3)
    answers = await ask_all(engine, [{"n": -2}, {"n": 2}, {"n": 3}])
    assert [status for status, _ in answers] == [400, 200, 500]


@pytest.mark.parametrize("name", ["batch", "batch_async"])
@pytest.mark.parametrize(
    ("do", "status"), [("refuse", 400), ("raise", 500), ("sys.exit", 500), ("os._exit", 500), ("hang", 504)]
)
async def test_of_a_batch_that_fails_as_a_whole_the_one_to_blame_is_found(
    make: Make, name: str, do: str, status: int
) -> None:
    engine = await make(name, batch_size=4, timeout_s=HANG_S if do == "hang" else 60)
    answers = await ask_all(engine, [{"n": 0}, {"n": 1}, {"do": do}, {"n": 3}])
    assert [answered for answered, _ in answers] == [200, 200, status, 200]


async def test_a_batch_with_too_few_results_is_split_until_each_has_its_own(make: Make) -> None:
    engine = await make("batch_too_short_with_others", batch_size=4)
    answers = await ask_all(engine, [{"n": 0}, {"do": "short"}, {"n": 2}, {"n": 3}])
    assert [status for status, _ in answers] == [200, 500, 200, 200]
    assert "0 results for a batch of 1" in error_of(answers[1])[2]


@pytest.mark.parametrize(("name", "words"), [("batch_too_short", "0 results"), ("batch_as_dict", "list of results")])
async def test_a_callable_that_never_answers_a_batch_says_so_for_each(make: Make, name: str, words: str) -> None:
    engine = await make(name, batch_size=2)
    for answered in await ask_all(engine, [{"n": 1}, {"n": 2}]):
        assert error_of(answered)[0] == 500
        assert words in error_of(answered)[2]


async def test_a_task_that_ended_a_process_runs_alone_when_it_is_tried_again(make: Make) -> None:
    """The worker tries it again a few times; others must not pay for each of them."""
    engine = await make("batch", batch_size=2, batch_wait_ms=60_000)
    killer = call(task="killer", do="os._exit")
    (_, died), _ = await asyncio.gather(called(engine, killer), ask(engine, task="a"))
    assert died.status == 500
    _, died = await called(engine, killer)  # it waits for no company
    assert died.status == 500
    assert [body["together"] for _, body in await ask_all(engine, [{}, {}])] == [2, 2]


# -- several at once


async def test_an_async_callable_runs_as_often_at_once_as_it_may(make: Make) -> None:
    engine = await make("Meeting", concurrency=3)
    assert engine.capacity().slots == 3
    assert [status for status, _ in await ask_all(engine, [{"n": 3}] * 3)] == [200, 200, 200]


@pytest.mark.parametrize(("do", "status"), [("os._exit", 500), ("hang", 504)])
async def test_calls_that_ran_beside_one_that_ended_their_process_are_run_again(
    make: Make, do: str, status: int
) -> None:
    engine = await make("act_async", concurrency=4, timeout_s=HANG_S if do == "hang" else 60)
    answers = await ask_all(engine, [{"n": 0}, {"n": 1}, {"do": do}, {"n": 3}])
    assert [answered for answered, _ in answers] == [200, 200, status, 200]


async def test_an_async_call_that_takes_too_long_is_cancelled_and_its_process_goes_on(
    make: Make, tmp_path: Path
) -> None:
    engine = await make("wait", timeout_s=1, concurrency=2)
    begun, cancelled = str(tmp_path / "begun"), tmp_path / "cancelled"
    answered = await ask(engine, begun=begun, cancelled=str(cancelled))
    assert error_of(answered)[:2] == (504, "callable_timeout")
    assert cancelled.exists()


async def test_the_most_urgent_call_is_next(make: Make, tmp_path: Path) -> None:
    engine, gate = await make("Gated"), tmp_path / "gate"
    calls = [call(task="0", n=0, gate=str(gate)), call(task="1", n=1, priority=2), call(task="2", n=2, priority=0)]
    tasks = [asyncio.create_task(called(engine, each)) for each in calls]
    await wait_until(lambda: engine.capacity().running == 3, "all are in the engine")
    gate.touch()
    (_, last), _, _ = await tasks[1], await tasks[0], await tasks[2]
    assert msgspec.json.decode(last.body) == {"seen": [0, 2, 1]}


# -- aborts


async def test_an_async_call_is_cancelled_when_nobody_waits_for_it(make: Make, tmp_path: Path) -> None:
    engine = await make("wait")
    begun, cancelled = tmp_path / "begun", tmp_path / "cancelled"
    task = asyncio.create_task(ask(engine, begun=str(begun), cancelled=str(cancelled)))
    await wait_until(begun.exists, "it has begun")
    task.cancel()
    await wait_until(cancelled.exists, "it was cancelled")
    assert engine.capacity().running == 0


async def test_a_generator_is_closed_when_nobody_reads_it(make: Make, tmp_path: Path) -> None:
    engine, file = await make("endless"), tmp_path / "closed"
    running = engine.run(call(file=str(file)))
    first = await anext(running)
    await running.aclose()
    await wait_until(file.exists, "it was closed")
    assert isinstance(first, Chunk)
    chunks = engine.run(call(file=str(file)))
    assert await anext(chunks) == first, "the same process goes on"
    await chunks.aclose()


async def test_a_generator_that_streams_too_much_is_closed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.inference.python_places.STREAM_BYTES", 100 * CHUNK_BYTES)
    engine, file = await make("endless"), tmp_path / "closed"
    chunks, answer = await called(engine, call(file=str(file)))
    assert (answer.status, msgspec.json.decode(answer.body)["error"]["code"]) == (507, "result_too_large")
    assert 50 < len(chunks) < 100
    await wait_until(file.exists, "it was closed")


async def test_a_sync_call_that_is_aborted_keeps_its_process_until_it_returns(make: Make, tmp_path: Path) -> None:
    engine, gate = await make("Gated"), tmp_path / "gate"
    aborted = asyncio.create_task(ask(engine, n=0, gate=str(gate)))
    await wait_until(lambda: engine.capacity().running == 1, "it runs")
    aborted.cancel()
    waiting, unwanted = asyncio.create_task(ask(engine, task="b", n=1)), asyncio.create_task(ask(engine, task="c", n=2))
    await wait_until(lambda: engine.capacity().running == 2, "two wait")
    unwanted.cancel()
    await wait_until(lambda: engine.capacity().running == 1, "one is gone")
    gate.touch()
    assert await waiting == (200, {"seen": [0, 1]})


# -- what it prints


async def test_what_a_callable_prints_goes_to_the_log(make: Make, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    engine = await make("act")
    await ask(engine, do="print")
    await wait_until(lambda: "to the errors" in caplog.text, "it was logged")
    assert "m[0]: to the \N{REPLACEMENT CHARACTER}[31moutput" in caplog.messages


async def test_a_flood_of_lines_is_cut(make: Make, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    engine = await make("act")
    for do in ("flood", "endless line"):
        assert (await ask(engine, do=do))[0] == 200
    await engine.stop()
    assert "lines left out" in caplog.text
    assert sum("line " in message for message in caplog.messages) < 5 * LINES_PER_S


# -- start and end


STARTLESS = [
    ({"callable": ""}, "python.callable is missing"),
    ({"callable": "nowhere:f"}, "No module named 'nowhere'"),
    ({"callable": "engine_python_callables:none"}, "no attribute 'none'"),
    ({"callable": "engine_python_callables:not_callable"}, "cannot be called"),
    ({"callable": "engine_python_callables:NoWeights"}, "RuntimeError: there are no weights"),
    ({"callable": "engine_python_callables:AsyncLoadOnly"}, "make both async, or neither"),
    ({"callable": "engine_python_callables:double", "concurrency": 2}, "python.concurrency is 2"),
    ({"callable": "engine_python_callables:double", "path": "/no/such"}, "python.path is '/no/such'"),
    ({"callable": "engine_python_callables:double", "memory_mb": 1}, "more than 1 (python.memory_mb)"),
    ({"callable": "engine_python_exits:f"}, "SystemExit: 5"),
    ({"callable": "engine_python_dies:f"}, "exit code 6"),
]


@pytest.mark.parametrize(("options", "words"), STARTLESS, ids=[words for _, words in STARTLESS])
async def test_what_cannot_be_loaded_is_told_with_its_own_words(
    no_task_left: None, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    before = set(children(os.getpid()))
    (tmp_path / "engine_python_exits.py").write_text("import sys; sys.exit(5)")
    (tmp_path / "engine_python_dies.py").write_text("import os; os._exit(6)")
    own: dict[str, Any] = {
        "path": str(tmp_path) if "exits" in str(options) or "dies" in str(options) else FOLDER,
        "processes": 2,
    }
    engine = PythonEngine(model="m", options=PythonOptions(**(own | options)))
    with pytest.raises(ConfigError) as caught:
        await engine.start()
    assert words in str(caught.value)
    await engine.stop()
    assert set(children(os.getpid())) <= before


async def test_a_process_whose_end_was_broken_off_can_be_ended_all_the_same(make: Make) -> None:
    """One of several that do not load is cancelled by the first that fails, at any step of its own end."""
    (process,) = (await make("double"))._places._processes
    broken_off = asyncio.create_task(process._close())
    await asyncio.sleep(0)
    broken_off.cancel()
    with pytest.raises(asyncio.CancelledError):
        await broken_off
    await process.end()


async def test_a_load_that_never_ends_is_given_up(no_task_left: None) -> None:
    with pytest.raises(ConfigError, match=r"not loaded within 0.2 s \(python.load_s\)"):
        await built("Forever", load_s=0.2).start()


async def test_each_process_sees_one_gpu_and_there_is_one_for_each(make: Make) -> None:
    engine = await make("act", environ={"CUDA_VISIBLE_DEVICES": "3, GPU-5"})
    assert engine.capacity().slots == 2
    assert sorted(body["gpu"] for _, body in await ask_all(engine, [{"do": "gpu"}] * 2)) == ["3", "GPU-5"]


@pytest.mark.parametrize(("given", "seen"), [("", []), ("-1", []), ("0, 1", ["0", "1"]), ("2,-1,3", ["2"])])
def test_gpus_are_counted_as_cuda_counts_them(given: str, seen: list[str]) -> None:
    assert gpus({"CUDA_VISIBLE_DEVICES": given}) == seen
    assert gpus({}) == []


async def test_slots_are_what_all_processes_hold_unless_they_are_said(make: Make) -> None:
    assert (await make("batch", processes=2, batch_size=3)).capacity().slots == 6
    assert (await make("batch", batch_size=3, slots=50)).capacity().slots == 50


async def test_calls_under_way_are_handed_back_when_the_engine_stops(make: Make, tmp_path: Path) -> None:
    engine = await make("wait")
    task = asyncio.create_task(ask(engine, begun=str(tmp_path / "begun"), cancelled=str(tmp_path / "cancelled")))
    await wait_until((tmp_path / "begun").exists, "it runs")
    await engine.stop()
    with pytest.raises(EngineDead):
        await task


HOST = """
import asyncio, sys
from services.inference.engine_python import PythonEngine
from shared.engine_options import PythonOptions

async def main():
    engine = PythonEngine(model="m", options=PythonOptions(callable="engine_python_callables:double", path=sys.argv[1]))
    await engine.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_processes_end_with_a_worker_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HOST, FOLDER], stdout=subprocess.PIPE) as host:
        try:
            assert host.stdout is not None
            assert host.stdout.readline() == b"ready\n"
            below = children(host.pid)
            assert below
        finally:
            host.kill()
    wait_blocking(lambda: not any(map(alive, below)), "its processes have ended")
