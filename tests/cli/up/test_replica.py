"""Restarts, with programs of one line."""

import re
import sys
from pathlib import Path

import pytest

from services.cli.failure import Failure
from services.cli.up import replica
from services.cli.up.process import Program
from services.cli.up.replica import FAILED_STARTS, Replica
from services.cli.up.screen import Screen
from tests.support.processes import alive
from tests.support.waiting import wait_until

ANNOUNCE = "import os, time; os.write(int(os.environ['HEADRACE_READY_FD']), b'{\"url\": \"http://x\"}\\n'); "


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "FIRST_PAUSE_S", 0.001)


def program(folder: Path, code: str) -> Program:
    argv = [sys.executable, "-S", "-c", code]
    return Program(service="ingress", name="ingress", argv=argv, environ={}, log=folder / "log")


async def test_a_program_is_started_again_on_the_port_it_had_unless_it_does_not_start_so(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; port = os.environ.get('HEADRACE_INGRESS_PORT', '0'); print(port, flush=True)\n"
        f"runs = len(pathlib.Path({str(tmp_path / 'log')!r}).read_text().split())\n"
        "if runs == 3: raise SystemExit()\n"
        "os.write(int(os.environ['HEADRACE_READY_FD']), b'{\"url\": \"http://127.0.0.1:%d\"}\\n' % (int(port) or 4710 + runs))"
    )
    dying = Replica(program(tmp_path, code), Screen())
    dying.start()
    await wait_until(
        lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text().count("\n") > 5, "it ran often"
    )
    await dying.stop(grace_s=1)
    assert (tmp_path / "log").read_text().split()[:6] == ["0", "4711", "4711", "0", "4714", "4714"]


async def test_a_program_that_does_not_start_any_more_is_given_up_with_its_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "ran"
    once = f"import pathlib; mark = pathlib.Path({str(mark)!r}); known = mark.exists(); mark.touch(); "
    code = once + "import sys; known and sys.exit('out of ink'); " + ANNOUNCE
    with pytest.raises(Failure, match=rf"did not start {FAILED_STARTS} times in a row \(exit code 1\)") as given_up:
        await Replica(program(tmp_path, code), Screen()).start()
    assert "out of ink" in str(given_up.value)
    pauses = re.findall(r"again in (\S+) s", capsys.readouterr().err)
    assert [float(pause) for pause in pauses] == [0.001, 0.002, 0.004, 0.008, 0.016]


async def test_a_program_that_dies_again_and_again_is_kept_running_with_longer_and_longer_pauses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dying = Replica(program(tmp_path, ANNOUNCE + "print('x', flush=True); os._exit(7)"), Screen())
    dying.start()
    await wait_until(lambda: (tmp_path / "log").exists() and len((tmp_path / "log").read_text()) > 12, "it ran often")
    await dying.stop(grace_s=1)
    pauses = [float(pause) for pause in re.findall(r"again in (\S+) s", capsys.readouterr().err)]
    assert pauses[:5] == [0.001, 0.002, 0.004, 0.008, 0.016]


async def test_a_program_that_dies_before_it_is_ready_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="did not start") as given_up:
        await Replica(program(tmp_path, "raise SystemExit('no such colour')"), Screen()).start()
    assert str(given_up.value).count("no such colour") == 1


async def test_a_program_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    missing = Program(service="redis", name="redis", argv=["/nope"], environ={}, log=tmp_path / "log")
    with pytest.raises(Failure, match="/nope cannot be started: No such file"):
        await Replica(missing, Screen()).start()


async def test_a_program_deaf_to_sigterm_is_killed_with_its_children(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); " + ANNOUNCE + "time.sleep(60)"
    )
    deaf = Replica(program(tmp_path, code), Screen())
    deaf.start()
    assert await deaf.url == "http://x"
    await deaf.stop(grace_s=0.01)
    child = int((tmp_path / "log").read_text())
    await wait_until(lambda: not alive(child), "the child is gone too")


async def test_a_hangup_reaches_a_program_that_is_ready_and_no_other(tmp_path: Path) -> None:
    """Before a service listens for it, the signal is its end."""
    log, go = tmp_path / "log", tmp_path / "go"
    code = (
        "import pathlib, signal, time; print('begun', flush=True)\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.001)\n"
        "signal.signal(signal.SIGHUP, lambda *_: print('told', flush=True))\n"
        + ANNOUNCE
        + "\nwhile True: time.sleep(60)"
    )
    replica = Replica(program(tmp_path, code), Screen())
    replica.start()
    await wait_until(lambda: log.exists() and log.read_text() == "begun\n", "it runs")
    replica.hang_up()
    go.touch()
    assert await replica.url == "http://x"
    await wait_until(lambda: told_after(replica, log), "it was told")
    await replica.stop(grace_s=1)
    assert log.read_text().startswith("begun\ntold\n")


def told_after(replica: Replica, log: Path) -> bool:
    """The URL is known a moment before the replica counts as ready, so the signal is sent until it arrives."""
    replica.hang_up()
    return "told" in log.read_text()
