"""The stage `sweep`: run the trials of a recipe over a space, and find their Pareto front."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import exclusive
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.sweep import choice, queue
from slimdeploy.toolchain.sweep.choice import Condition
from slimdeploy.toolchain.sweep.result import FILE, check_own, described, remove_picked, sweep_document
from slimdeploy.toolchain.sweep.storage import identity, open_study, storage_errors
from slimdeploy.toolchain.sweep.worker import Job, work


@dataclass(frozen=True)
class SweepResult:
    """`problem`: why the sweep is incomplete, although it ran."""

    document: dict[str, Any]
    problem: str | None


def sweep_stage(job: Job, *, workers: int, conditions: Sequence[Condition]) -> SweepResult:
    """Run all trials with `workers` processes, wait for those of other machines, and write `sweep.json`.

    Raises SlimdeployError for an unusable storage, or if no trial has a result.
    """
    check_own(job.folder)
    wanted = identity(job.recipe, job.space, job.options)
    study = open_study(wanted, job.options)
    if workers == 1:
        work(study, job)
    else:
        _work_in_processes(wanted, job, workers)
    with storage_errors(job.options.storage):
        trials = study.get_trials(deepcopy=False)
    rows = queue.results(trials)
    failed = queue.given_up(trials, since=job.options.started)
    if not rows:
        why = next(iter(failed.values()), "all workers ended early")
        raise SlimdeployError(f"no trial was completed: {why}")
    best = choice.pick(rows, conditions) if conditions else None
    artifacts.make_folder(job.folder)
    # Sweeps that share the folder end at the same time, and may pick differently.
    waiting = "waiting for another sweep that is writing its result"
    with exclusive(job.folder, str(job.folder), waiting=waiting):
        remove_picked(job.folder)
        picked, sources = described(best, conditions, job.folder) if best else (None, {})
        document = sweep_document(job, rows, failed, picked)
        results.write(job.folder / FILE, document)  # first, so that it never misses a picked file
        for name, source in sources.items():
            artifacts.link(source, job.folder / name)
    return SweepResult(document, _problem(job, trials, rows, failed, conditions, best))


def _problem(
    job: Job,
    trials: Sequence[optuna.trial.FrozenTrial],
    rows: Sequence[choice.Row],
    failed: dict[Any, str],
    conditions: Sequence[Condition],
    best: choice.Row | None,
) -> str | None:
    if failed:
        point, why = next(iter(failed.items()))
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        return f"{point.name} failed: {why}{more}; the same command tries again"
    points = job.space.points() if job.options.trials is None else None
    left = queue.to_queue(points, trials, since=job.options.started)
    if left or queue.is_open(trials, limit=job.options.trials, since=job.options.started):
        return "the workers ended before all trials were done: run the same command to continue"
    if conditions and best is None:
        return choice.why_none(rows, conditions)
    return None


def _work_in_processes(wanted: dict[str, Any], job: Job, workers: int) -> None:
    """Start the workers and wait for them. A worker that dies is reported; the others take over its trial."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    processes = [context.Process(target=_worker_process, args=(wanted, job)) for _ in range(workers)]
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the workers end, too
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode:
                log(f"a worker ended with exit code {process.exitcode}")
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        signal.signal(signal.SIGTERM, before)


def _worker_process(wanted: dict[str, Any], job: Job) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    if job.options.threads:
        import torch

        torch.set_num_threads(job.options.threads)
    try:
        work(open_study(wanted, job.options), job)
    except SlimdeployError as error:
        print(f"slimdeploy: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
