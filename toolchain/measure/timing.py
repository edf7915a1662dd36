"""Time models in fresh processes: in launches, each with interleaved rounds.

A launch starts a new process for every model, warms it up, and times all models in rounds. A round runs every
model twice, in a random order and then in reverse (ABBA), so that linear drift (clocks, heat, other programs)
affects all equally. Launches are repeated until the confidence intervals are as narrow as requested, or the
time is used up.
"""

from __future__ import annotations

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
    """The times of one model: for each launch its blocks in order, two per round."""

    warm_ups: list[WarmUp] = field(default_factory=list)
    launches: list[list[Block]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    """Average number of processors that other programs used, by launch, if the machine reports it."""

    @property
    def blocks(self) -> list[Block]:
        return [block for launch in self.launches for block in launch]

    def samples(self, figure: str = HOST) -> np.ndarray:
        """The `figure` of every run in ms; empty if the session doesn't report it."""
        return np.concatenate([block.get(figure, np.empty(0)) for block in self.blocks])

    def by_launch(self) -> statistics.Launches:
        """Host times in ms, by launch and round."""
        return [statistics.rounds([block[HOST] for block in launch]) for launch in self.launches]


Launch = Callable[[Sequence[int]], AbstractContextManager[list[Worker]]]
"""Starts a fresh process for every model in the given order, ready to run."""


def time_models(
    launch: Launch,
    models: int,
    options: TimingOptions,
    *,
    pairs: Sequence[tuple[int, int]] = (),
    last: Callable[[list[Worker]], None] = lambda workers: None,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Timing]:
    """Time the models. `pairs` are the comparisons whose intervals must be narrow as well: baseline and
    model. `last` is called with the workers of the last launch before they end.
    """
    timings = [Timing() for _ in range(models)]
    shuffled, order = random.Random(options.seed), list(range(models))
    spent, budget = 0.0, options.seconds * models
    for number in itertools.count(1):
        # The first process may get another core or other memory, so the order is random.
        shuffled.shuffle(order)
        with launch(order) as workers:
            for i in order:
                settle(workers)
                warm_up = workers[i].call("warm_up", options.warm_up_floor_s, options.warm_up_limit_s)
                timings[i].warm_ups.append(warm_up)
            spent += _time_launch(workers, timings, options, shuffled)
            width = widest(timings, pairs) if number > 1 else math.inf
            reached = f"±{width:.1%}, " if number > 1 else ""
            progress(f"launch {number}: {reached}timed {spent:.0f} of at most {budget:.0f} s")
            # Checking the interval too often would reduce its coverage below 95 %.
            if number % options.launches == 0 and (width <= options.ci or spent >= 0.95 * budget):
                last(workers)
                return timings
    raise AssertionError("unreachable")


def _time_launch(
    workers: Sequence[Worker],
    timings: Sequence[Timing],
    options: TimingOptions,
    shuffled: random.Random,
) -> float:
    """Add a launch to `timings`; returns the seconds that it took."""
    for timing in timings:
        timing.launches.append([])
    order, pids = list(range(len(workers))), [worker.pid for worker in workers]
    block = min(options.block_s, options.launch_s / 2), options.lead_in_s
    before, begin, spent = load.usage(pids), time.perf_counter(), 0.0
    while not timings[0].launches[-1] or spent < options.launch_s * len(workers):
        shuffled.shuffle(order)
        for i in (*order, *reversed(order)):
            settle(workers)
            timings[i].launches[-1].append(workers[i].call("block", *block))
        spent = time.perf_counter() - begin
    after = load.usage(pids)
    if before and after:
        for timing in timings:
            timing.others.append(after.others_since(before))
    return spent


def widest(timings: Sequence[Timing], pairs: Sequence[tuple[int, int]]) -> float:
    """The widest of all intervals, as a relative half-width: of every median, and of the ratio of each of
    `pairs`.
    """
    launches = [timing.by_launch() for timing in timings]
    found = [statistics.estimate(statistics.levels(own)) for own in launches]
    found += [statistics.ratio(launches[base], launches[own]) for base, own in pairs]
    return max(one.half_width() for one in found)
