"""Several workers on one study: over a real PostgreSQL with one of them killed, and over SQLite."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import quick_bench
from forked import Forked, until
from processes import TESTS, process_environment
from tiny_recipe import recipe_text

optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'slimdeploy[sweep]'")

from slimdeploy.tests.toolchain.sweep.conftest import PASSWORD  # noqa: E402
from slimdeploy.tests.toolchain.sweep.test_sweep import document  # noqa: E402
from slimdeploy.toolchain.pipeline import plan  # noqa: E402
from slimdeploy.toolchain.sweep import queue, worker  # noqa: E402

pytestmark = pytest.mark.xdist_group("forked")  # one worker starts what they are forked off
GRID = ("--sparsity", "0,0.1", "--ratio", "0.1,0.3")


def quick_environment() -> dict[str, str]:
    """That of processes which don't really measure."""
    environment = process_environment()
    path = [str(TESTS / "subprocesses" / "quick"), environment["PYTHONPATH"]]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture
def recipe(tmp_path: Path, image_folder: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(recipe_text(image_folder))
    return path


@pytest.fixture
def start(recipe: Path, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Starts a worker as a process of its own, its measuring faked."""
    started = []

    def run(name: str, output: Path, *arguments: str) -> Forked:
        command = ["sweep", recipe, "-o", output, "--device", "cpu", "--threads", 1, "--heartbeat", 3]
        process = Forked([*command, *arguments], tmp_path / name, {}, quick_bench.install)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def _trials(storage: str) -> list[Any]:
    return optuna.load_study(study_name="small", storage=storage).get_trials(deepcopy=False)


def test_workers_share_a_postgresql_and_take_up_what_a_killed_one_left(
    start: Callable[..., Forked], postgresql: str, tmp_path: Path, slimdeploy_command: Callable, recipe: Path
) -> None:
    arguments = (*GRID, "--storage", postgresql)
    shared, apart = tmp_path / "folder", tmp_path / "another"
    victim = start("victim", shared, *arguments)
    until(lambda: "train …" in victim.err, victim)  # in the middle of a trial
    others = {"beside": start("beside", shared, *arguments), "apart": start("apart", apart, *arguments)}
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    for process in others.values():
        assert process.wait(300) == 0, process.err
    logs = {name: process.out + process.err for name, process in others.items()}

    # Each point is done once, also the one that the killed worker was at.
    trials = [t for t in _trials(postgresql) if queue.SURPLUS not in t.user_attrs]
    complete = [queue.point_of(t) for t in trials if t.state == optuna.trial.TrialState.COMPLETE]
    assert len(complete) == len(set(complete)) == 4
    dead = [t for t in trials if t.state == optuna.trial.TrialState.FAIL]
    assert {t.user_attrs[queue.WORKER].rsplit(":")[-1] for t in dead} == {str(victim.pid)}
    # Both folders tell of all of them, though they share nothing but the storage.
    for folder in (shared, apart):
        assert len(document(folder)["trials"]) == 4
        assert PASSWORD not in (folder / "sweep.json").read_text()
    # Where a folder is shared each sparsity is trained once, but for what the kill interrupted.
    victims = victim.out + victim.err
    trained = re.findall("^train …$", victims + logs["beside"], re.MULTILINE)
    assert len(trained) <= 3
    assert PASSWORD not in victims + "".join(logs.values())

    # Afterwards anyone may ask the study, from a folder that has nothing.
    asked = slimdeploy_command(
        "sweep", recipe, *arguments, "-o", tmp_path / "new", "--pick", "accuracy>=0%", "--json"
    )
    assert asked.exit_code == 0, asked.err
    assert asked.json["picked"]["files"] == []
    assert len(asked.json["trials"]) == 4


def test_two_processes_share_a_sqlite_file(recipe: Path, tmp_path: Path) -> None:
    """As `--workers` starts them."""
    output = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "slimdeploy.toolchain", "sweep", recipe, *GRID, "--device", "cpu",
         "--workers", "2", "-o", output, "--json"],
        capture_output=True, text=True, env=quick_environment(), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"] == document(output)["trials"]
    assert len(document(output)["trials"]) == 4
    assert done.stderr.count("train …\n") == 2
    trials = _trials(f"sqlite:///{output / 'study.db'}")
    assert len([t for t in trials if t.state == optuna.trial.TrialState.COMPLETE]) == 4
    assert len({t.user_attrs[queue.WORKER] for t in trials}) <= 2


def test_a_worker_that_was_considered_dead_takes_the_next_trial(
    slimdeploy_command: Callable, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused, or its machine was: another worker has failed its trial meanwhile."""
    storage = f"sqlite:///{tmp_path / 'out' / 'study.db'}"
    really = worker.carry_out

    def carry_out(base: Any, point: Any, folder: Path, options: Any) -> dict[str, Any]:
        row = really(base, point, folder, options)
        if len(_trials(storage)) == 1:
            optuna.load_study(study_name="small", storage=storage).tell(0, state=optuna.trial.TrialState.FAIL)
        return row

    monkeypatch.setattr(plan, "bench_stage", quick_bench.bench)
    monkeypatch.setattr(worker, "carry_out", carry_out)
    ran = slimdeploy_command(
        "sweep", recipe, "--ratio", "0.2", "-o", tmp_path / "out", "--device", "cpu", "--threads", 1
    )
    assert ran.exit_code == 0, ran.err
    assert "the other workers consider this one dead: they repeat its trial" in ran.err
    assert [t.state.name for t in _trials(storage)] == ["FAIL", "COMPLETE"]
    assert len(document(tmp_path / "out")["trials"]) == 1
