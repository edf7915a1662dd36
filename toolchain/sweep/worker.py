"""A worker: runs trials of the study until none is left.

Any number of workers, each in its own process, can work on one study, on any number of machines. If a worker
dies, its heartbeat stops; the others then queue its trial again, which continues where it stopped if they
share the folder.
"""

from __future__ import annotations

import math
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
    """The trial is superfluous."""


@dataclass(frozen=True)
class Job:
    """Everything that a worker needs to know."""

    recipe: Recipe
    space: Space
    folder: Path
    options: SweepOptions


def work(study: optuna.Study, job: Job) -> None:
    """Run trials until the grid, or the requested number of trials, is done; wait for those of other
    workers.
    """
    with storage_errors(job.options.storage):
        _Worker(study, job).run()


class _Worker:
    def __init__(self, study: optuna.Study, job: Job) -> None:
        self.study, self.job = study, job
        self.points = job.space.points() if job.options.trials is None else None
        self.limit, self.since = job.options.trials, job.options.started
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._taken: Trial | None = None
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
        self._taken = None
        try:
            self.study.optimize(self._objective, n_trials=1, catch=(Exception,))
        except Exception:
            # Which error Optuna raises for a trial that another worker has failed depends on when that was.
            if not self._was_buried():
                raise
            log("the other workers consider this one dead: they repeat its trial")

    def _was_buried(self) -> bool:
        """Whether another worker has failed the trial that this one ran, as after a pause of this one."""
        if self._taken is None:
            return False
        number = self._taken.number
        return any(t.number == number and t.state == TrialState.FAIL for t in self._trials())

    def _objective(self, trial: Trial) -> tuple[float, float]:
        self._taken = trial
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
        """The point of the trial: as queued, or as suggested by the sampler."""
        known, space = trial.user_attrs.get(queue.POINT), self.job.space
        if self.limit is None:
            point = Point(**known) if known else space.points()[0]  # without a point it is dropped at once
            # Only to record the parameters in Optuna. Workers that extend the grid have the same ranges.
            trial.suggest_float("sparsity", 0, 1e6)
            trial.suggest_float("ratio", 0, 1)
            trial.suggest_int("align", 1, 1 << 20)
            return point
        # The whole percents in the range; the tolerance is for values like 0.29, which is 28.999… percent.
        low, high = math.ceil(100 * min(space.ratio) - 1e-9), math.floor(100 * max(space.ratio) + 1e-9)
        point = Point(
            trial.suggest_categorical("sparsity", space.sparsity),
            trial.suggest_int("ratio_percent", low, high) / 100,
            trial.suggest_categorical("align", space.align),
        )
        trial.set_user_attr(queue.POINT, point.to_json())
        return point

    def _bury_the_dead(self) -> None:
        """Fail the trials of workers without a heartbeat."""
        optuna.storages.fail_stale_trials(self.study)
        # A worker that died before its first heartbeat never had one: Optuna leaves its trial.
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
