"""Times models against each other: one process each, interleaved in randomised ABBA rounds.

A round runs every model twice, in a random order and then in that order reversed, so whatever drifts
linearly over the round (clocks, heat) weighs on all alike. Rounds go on until the confidence intervals are
as narrow as asked for, or the time is used up.
"""

from __future__ import annotations

import functools
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from slimdeploy.benchmarks import statistics
from slimdeploy.benchmarks.process import Worker, settle
from slimdeploy.benchmarks.worker import HOST, Block, WarmUp


@dataclass(frozen=True)
class TimingOptions:
    """How long and how sure. `seconds` is timed running for each model at each batch size; `ci` is the
    half-width asked for, relative to the median. The floors hold even where they take longer than
    `seconds`.
    """

    seconds: float = 10.0
    ci: float = 0.02
    seed: int = 0
    minimum_rounds: int = 8
    """A bootstrap over fewer rounds gives intervals that are too narrow."""
    minimum_runs: int = 3
    """In each block."""
    lead_in: int = 2
    warm_up_floor_s: float = 0.6

    @property
    def warm_up_limit_s(self) -> float:
        return max(2 * self.warm_up_floor_s, self.seconds)

    @property
    def block_s(self) -> float:
        """Length of one block; a round holds two for each model, and the rounds are at least the minimum."""
        return min(0.5, self.seconds / (2 * self.minimum_rounds))


@dataclass
class Timing:
    """One model's times: its blocks in the order they were taken, two a round."""

    warm_up: WarmUp
    blocks: list[Block] = field(default_factory=list)

    def samples(self, figure: str = HOST) -> np.ndarray:
        """Every run's `figure` in ms; empty where the session doesn't tell it."""
        return np.concatenate([block.get(figure, np.empty(0)) for block in self.blocks])

    def rounds(self) -> list[np.ndarray]:
        """Host times in ms, an array a round."""
        firsts, seconds = self.blocks[::2], self.blocks[1::2]
        return [np.concatenate([a[HOST], b[HOST]]) for a, b in zip(firsts, seconds, strict=True)]


Around = Callable[[Worker, Callable[[], Block]], Block]
"""Called around each timed block with its worker: where power is sampled."""


def time_models(
    workers: Sequence[Worker],
    options: TimingOptions,
    *,
    around: Around | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Timing]:
    """Warm every worker up, then time them all in rounds; the first is the baseline of the others."""
    timings = []
    for worker in workers:
        progress(f"warming up {worker.label}")
        settle(workers)
        timings.append(Timing(worker.call("warm_up", options.warm_up_floor_s, options.warm_up_limit_s)))
    shuffled, order = random.Random(options.seed), list(range(len(workers)))
    begin, budget = time.perf_counter(), options.seconds * len(workers)
    block = options.block_s, options.minimum_runs, options.lead_in
    for number in itertools.count(1):
        shuffled.shuffle(order)
        for i in (*order, *reversed(order)):
            settle(workers)
            take = functools.partial(workers[i].call, "block", *block)
            timings[i].blocks.append(around(workers[i], take) if around else take())
        spent = time.perf_counter() - begin
        width = widest(timings)
        progress(f"round {number}: ±{width:.1%}, {spent:.0f} of {budget:.0f} s")
        if number >= options.minimum_rounds and (width <= options.ci or spent >= budget):
            return timings
    raise AssertionError("unreachable")


def widest(timings: Sequence[Timing]) -> float:
    """The widest of all intervals, as a relative half-width: every median, and every ratio to the first."""
    rounds = [timing.rounds() for timing in timings]
    widths = []
    for own in rounds:
        bounds = statistics.interval(own, replicates=200)
        widths.append(statistics.half_width(bounds, statistics.statistic(np.concatenate(own), "p50")))
    for own in rounds[1:]:
        bounds = statistics.ratio_interval(rounds[0], own, replicates=200)
        widths.append(statistics.half_width(bounds, statistics.ratio(rounds[0], own)))
    return max(widths)
