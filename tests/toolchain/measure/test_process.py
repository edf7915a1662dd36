from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from fake_sessions import fake

from slimdeploy.toolchain.measure.process import Worker, launched

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def processors(worker: Worker) -> set[int]:
    """The processors that any thread of the worker may use."""
    return set().union(*(os.sched_getaffinity(int(task)) for task in os.listdir(f"/proc/{worker.pid}/task")))


def launch_of_two(*, threads: int | None, backend: str = "fake-cpu") -> list[set[int]]:
    subjects = [replace(fake(name, backend=backend), threads=threads) for name in ("one", "two")]
    with launched(subjects, 1, (1, 0)) as workers:
        return [processors(worker) for worker in workers]


def test_models_with_one_thread_share_a_processor_of_this_process():
    first, second = launch_of_two(threads=1)
    assert first == second
    assert len(first) == 1
    assert first < os.sched_getaffinity(0) or os.cpu_count() == 1


@pytest.mark.parametrize(
    "options", [{"threads": None}, {"threads": 2}, {"threads": 1, "backend": "fake-cuda"}]
)
def test_models_with_more_threads_or_on_a_gpu_keep_all_processors(options):
    assert launch_of_two(**options) == [os.sched_getaffinity(0)] * 2


def test_a_script_needs_no_guard(tmp_path):
    """The worker doesn't run the script that started it, from a file or from standard input."""
    script = """if True:
        from fake_sessions import fake
        from slimdeploy.toolchain.measure.process import launched
        print("begins")
        with launched([fake("one")], 1, (0,)) as (worker,):
            print(worker.opened.backend)
    """
    (tmp_path / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for command, standard_input in (([tmp_path / "script.py"], ""), (["-"], script)):
        ran = subprocess.run(
            [sys.executable, *command], input=standard_input, env=environment, capture_output=True, text=True
        )
        assert (ran.stdout, ran.returncode) == ("begins\nfake-cpu\n", 0), ran.stderr


def test_this_process_keeps_its_processors():
    before = os.sched_getaffinity(0)
    launch_of_two(threads=1)
    assert os.sched_getaffinity(0) == before


def test_a_sandbox_that_forbids_it_changes_nothing(monkeypatch):
    def forbidden(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    assert launch_of_two(threads=1) == [os.sched_getaffinity(0)] * 2
