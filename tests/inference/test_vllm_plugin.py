import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import alive
from tests.support.waiting import wait_blocking

EMBEDDING = """
import multiprocessing, os, signal, sys
from services.inference import vllm_plugin

def child(pipe):
    if multiprocessing.get_start_method() == "spawn":
        vllm_plugin.register()  # as vLLM does there
    grandchild = multiprocessing.get_context("fork").Process(target=signal.pause)
    grandchild.start()
    pipe.send((os.getpid(), grandchild.pid, os.getpgid(0)))
    signal.pause()

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    vllm_plugin.register()
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.Process(target=child, args=(theirs,)).start()
    print(*ours.recv(), flush=True)
    signal.pause()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_and_their_children_die_with_the_process_that_embeds_the_engine(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "embedding.py"
    script.write_text(EMBEDDING)
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    with subprocess.Popen([sys.executable, script, method], stdout=subprocess.PIPE) as embedding:
        assert embedding.stdout is not None
        child, grandchild, group = map(int, embedding.stdout.readline().split())
        assert alive(child)
        assert alive(grandchild)
        if method == "fork":
            assert group == child, "out of reach of a terminal's Ctrl-C"
        embedding.kill()
    wait_blocking(lambda: not alive(child) and not alive(grandchild), "both have ended")
