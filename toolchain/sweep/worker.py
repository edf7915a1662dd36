"""A worker: takes trials of the study and does them until none is left.

Any number of them work on one study, in one process each, on any number of machines. A worker that dies is
noticed by the others when its heartbeat stops; its trial is then queued again, and goes on where it was if
they share the folder.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.pipeline.recipe import Recipe
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.sweep import choice, queue
from slimdeploy.toolchain.sweep.options import SweepOptions
from slimdeploy.toolchain.sweep.space import Point, Space
from slimdeploy.toolchain.sweep.storage import DEATHS, storage_errors
from slimdeploy.toolchain.sweep.trial import carry_out


class GaveWay(Exception):
    """The trial was one too many."""


@dataclass(frozen=True)
class Job:
    """All that a worker has to know."""

    recipe: Recipe
    space: Space
    folder: Path
    options: SweepOptions


def work(study: optuna.Study, job: Job) -> None:
    """Do trials until the grid, or the number of trials asked for, is done; wait for those of others."""
    with storage_errors(job.options.storage):
        _Worker(study, job).run()


class _Worker:
    def __init__(self, study: optuna.Study, job: Job) -> None:
        self.study, self.job = study, job
        self.points = job.space.points() if job.options.trials is None else None
        self.limit, self.since = job.options.trials, job.options.started
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._waited_for: str | None = None
        self._unclaimed: dict[int, float] = {}

    def run(self) -> None:
        while True:
            self._bury_the_dead()
            trials = self._trials()
            for point, parameters in queue.to_queue(self.points, trials, since=self.since):
                self.study.enqueue_trial(parameters, user_attrs={queue.POINT: point.to_json()})
                trials = None
            if trials is None or queue.is_open(trials, limit=self.limit, since=self.since):
                self._take_one()
            elif others := queue.running(trials):
                self._wait_for(others)
            else:
                return

    def _trials(self) -> Any:
        return self.study.get_trials(deepcopy=False)

    def _take_one(self) -> None:
        try:
            self.study.optimize(self._objective, n_trials=1, catch=(Exception,))
        except optuna.exceptions.UpdateFinishedTrialError:
            log("the other workers took this one for dead: its result is left to them")

    def _objective(self, trial: Trial) -> tuple[float, float]:
        trial.set_user_attr(queue.WORKER, self.name)
        point = self._place(trial)
        trials = self._trials()
        own = next(t for t in trials if t.number == trial.number)
        if queue.gives_way(own, trials, limit=self.limit, since=self.since):
            trial.set_user_attr(queue.SURPLUS, True)
            raise GaveWay
        log(f"trial {trial.number}: {point.describe()}")
        try:
            row = carry_out(self.job.recipe, point, self.job.folder, self.job.options)
        except Exception as error:
            message = str(error) if isinstance(error, SlimdeployError) else f"{type(error).__name__}: {error}"
            message = " ".join(message.split())
            trial.set_user_attr(queue.ERROR, {"message": message, "at": time.time()})
            log(f"trial {trial.number} failed: {message}")
            raise
        trial.set_user_attr(queue.RESULT, row)
        return choice.accuracy(row), choice.latency(row)

    def _place(self, trial: Trial) -> Point:
        """Where the trial stands: as it was queued, or as the sampler says."""
        known, space = trial.user_attrs.get(queue.POINT), self.job.space
        if self.limit is None:
            point = Point(**known) if known else space.points()[0]  # without a place it gives way at once
            # Only so that Optuna knows the parameters too. Those who extend the grid have the same ranges.
            trial.suggest_float("sparsity", 0, 1e6)
            trial.suggest_float("ratio", 0, 1)
            trial.suggest_int("align", 1, 1 << 20)
            return point
        low, high = (round(100 * value) for value in (min(space.ratio), max(space.ratio)))
        point = Point(
            trial.suggest_categorical("sparsity", space.sparsity),
            trial.suggest_int("ratio_percent", low, high) / 100,
            trial.suggest_categorical("align", space.align),
        )
        trial.set_user_attr(queue.POINT, point.to_json())
        return point

    def _bury_the_dead(self) -> None:
        """Fail the trials of workers that aren't heard of any more."""
        optuna.storages.fail_stale_trials(self.study)
        # One that died between taking its trial and its first heartbeat never had one: Optuna leaves it.
        now, limit = time.monotonic(), DEATHS * self.job.options.heartbeat
        for trial in queue.running(self._trials()):
            if queue.WORKER in trial.user_attrs:
                continue
            if now - self._unclaimed.setdefault(trial.number, now) > limit:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _wait_for(self, others: list[FrozenTrial]) -> None:
        names = ", ".join(sorted({str(t.user_attrs.get(queue.WORKER, "another worker")) for t in others}))
        if names != self._waited_for:
            log(f"nothing left to take: waiting for {names}")
        self._waited_for = names
        time.sleep(min(1.0, self.job.options.heartbeat / 2))
