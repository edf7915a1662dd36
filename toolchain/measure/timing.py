"""Times models against each other: fresh processes, launch by launch, and interleaved rounds in each.

A launch starts a new process for every model, warms it up and times them all in rounds. A round runs every
model twice, in a random order and then in that order reversed (ABBA), so whatever drifts linearly over the
round (clocks, heat, other work) weighs on all alike. Launches go on until the confidence intervals are as
narrow as asked for, or the time is used up.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from slimdeploy.toolchain.measure import load, statistics
from slimdeploy.toolchain.measure.options import TimingOptions
from slimdeploy.toolchain.measure.process import Worker, settle
from slimdeploy.toolchain.measure.worker import HOST, Block, WarmUp


@dataclass
class Timing:
    """One model's times: of each launch the blocks in the order they were taken, two a round."""

    warm_ups: list[WarmUp] = field(default_factory=list)
    launches: list[list[Block]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    """Processors that other programs kept busy meanwhile, on average: by launch, where the machine tells."""

    @property
    def blocks(self) -> list[Block]:
        return [block for launch in self.launches for block in launch]

    def samples(self, figure: str = HOST) -> np.ndarray:
        """Every run's `figure` in ms; empty where the session doesn't tell it."""
        return np.concatenate([block.get(figure, np.empty(0)) for block in self.blocks])

    def by_launch(self) -> statistics.Launches:
        """Host times in ms, by launch and round."""
        return [statistics.rounds([block[HOST] for block in launch]) for launch in self.launches]


Launch = Callable[[Sequence[int]], AbstractContextManager[list[Worker]]]
"""Starts a fresh process for every model in the order given (0 is the baseline), ready to run."""
Around = Callable[[Worker, Callable[[], Block]], Block]
"""Called around each timed block with its worker: where power is sampled."""


def time_models(
    launch: Launch,
    models: int,
    options: TimingOptions,
    *,
    around: Around | None = None,
    last: Callable[[list[Worker]], None] = lambda workers: None,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Timing]:
    """Time so many `models`. `last` is called with the last launch's workers before they end."""
    timings = [Timing() for _ in range(models)]
    shuffled, order = random.Random(options.seed), list(range(models))
    spent, budget = 0.0, options.seconds * models
    for number in itertools.count(1):
        # Who starts first may get another core or other memory: it must not always be the same one.
        shuffled.shuffle(order)
        with launch(order) as workers:
            for i in order:
                settle(workers)
                warm_up = workers[i].call("warm_up", options.warm_up_floor_s, options.warm_up_limit_s)
                timings[i].warm_ups.append(warm_up)
            spent += _time_launch(workers, timings, options, shuffled, around)
            width = widest(timings) if number > 1 else math.inf
            reached = f"±{width:.1%}, " if number > 1 else ""
            progress(f"launch {number}: {reached}timed {spent:.0f} of at most {budget:.0f} s")
            # An interval that is looked at whenever it happens to be narrow is no 95 % interval any more.
            if number % options.launches == 0 and (width <= options.ci or spent >= 0.95 * budget):
                last(workers)
                return timings
    raise AssertionError("unreachable")


def _time_launch(
    workers: Sequence[Worker],
    timings: Sequence[Timing],
    options: TimingOptions,
    shuffled: random.Random,
    around: Around | None,
) -> float:
    """Add a launch to `timings`; returns the seconds that it took."""
    for timing in timings:
        timing.launches.append([])
    order, pids = list(range(len(workers))), [worker.pid for worker in workers]
    block = min(options.block_s, options.launch_s / 2), options.minimum_runs, options.lead_in
    before, begin, spent = load.usage(pids), time.perf_counter(), 0.0
    while not timings[0].launches[-1] or spent < options.launch_s * len(workers):
        shuffled.shuffle(order)
        for i in (*order, *reversed(order)):
            settle(workers)
            take = functools.partial(workers[i].call, "block", *block)
            timings[i].launches[-1].append(around(workers[i], take) if around else take())
        spent = time.perf_counter() - begin
    after = load.usage(pids)
    if before and after:
        for timing in timings:
            timing.others.append(after.others_since(before))
    return spent


def widest(timings: Sequence[Timing]) -> float:
    """The widest of all intervals, as a relative half-width: every median, and every ratio to the first."""
    launches = [timing.by_launch() for timing in timings]
    found = [statistics.estimate(statistics.levels(own)) for own in launches]
    found += [statistics.ratio(launches[0], own) for own in launches[1:]]
    return max(one.half_width() for one in found)
