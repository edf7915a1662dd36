"""The choice of channels under a budget: pure functions of scores and costs; sorted indices per group.

Widths are reduced step by step, each time where the least importance is lost per cost saved (greedy solution
of the knapsack problem), in steps that keep every width a multiple of the alignment. With channels as the
cost this is the global threshold of network slimming; with milliseconds from a latency table it is the
latency-constrained knapsack of HALP (Shen et al., arXiv 2110.10811, section 3.2).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.pruning.costs import Widths

Kept = dict[str, np.ndarray]
"""Group name -> sorted indices of the kept channels; empty if the block is removed."""


class Costs(Protocol):
    """Prices widths: see costs.CostModel."""

    def total(self, widths: Widths) -> float: ...

    def saving(self, widths: Widths, changes: Widths) -> float: ...


@dataclass(frozen=True)
class Rules:
    """Constraints of a selection."""

    align: int = 1
    min_channels: int = 3
    removable: tuple[tuple[str, ...], ...] = ()
    """Groups of the same block, which may become 0 together."""
    unit_channels: Mapping[str, int] = field(default_factory=dict)
    """Group -> channels in each of its units, if more than one."""

    def step(self, name: str) -> int:
        """Number of units of the group that is a multiple of the alignment."""
        return self.align // math.gcd(self.align, self.unit_channels.get(name, 1))

    def widths_below(self, name: str, width: int) -> list[int]:
        """The allowed widths of the group in units, from `width` downwards."""
        step = self.step(name)
        least = -(-self.min_channels // (self.unit_channels.get(name, 1) * step)) * step
        if least >= width:
            return [width]
        highest = (width - 1) // step * step
        return [width, *range(highest, least - 1, -step)]


def select(scores: dict[str, np.ndarray], costs: Costs, limit: float, rules: Rules, *, unit: str) -> Kept:
    """Keep the channels with the highest scores such that `costs` is at most `limit`, and as close to it as
    the steps allow.

    Raises SlimdeployError if even the smallest widths cost more; the error names that cost in `unit`.
    """
    peeling = _Peeling(scores, costs, rules)
    peeling.lower_to(limit)
    if peeling.cost > limit:
        raise SlimdeployError(
            f"{_figure(limit, unit)} is out of reach: the smallest network that the other settings allow "
            f"has {_figure(peeling.cost, unit)}"
        )
    peeling.fill_up_to(limit)
    return {name: best_channels(scores[name], width) for name, width in peeling.widths.items()}


def best_channels(scores: np.ndarray, count: int) -> np.ndarray:
    """Sorted indices of the `count` highest scores; of equal scores the earlier channel."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


class _Peeling:
    """Widths during the reduction, and the steps taken."""

    def __init__(self, scores: dict[str, np.ndarray], costs: Costs, rules: Rules) -> None:
        self.widths: Widths = {name: len(values) for name, values in scores.items()}
        self._costs, self._rules = costs, rules
        # Importance of the k best channels of a group, for every k.
        self._worth = {n: np.concatenate([[0.0], np.cumsum(np.sort(v)[::-1])]) for n, v in scores.items()}
        self._ladder = {name: rules.widths_below(name, width) for name, width in self.widths.items()}
        self._steps: list[tuple[Widths, Widths]] = []
        self.cost = costs.total(self.widths)

    def lower_to(self, limit: float) -> None:
        """Take the cheapest step until the cost is within `limit` or no step is left."""
        if self.cost > limit:
            self._align()
        queue = [(self._price(change), i, change) for i, change in enumerate(self._openings())]
        heapq.heapify(queue)
        order = len(queue)
        while self.cost > limit and queue:
            _, _, change = heapq.heappop(queue)
            price = self._price(change)  # steps of neighbouring groups have changed its price
            if queue and price > queue[0][0]:
                heapq.heappush(queue, (price, order, change))
                order += 1
                continue
            self._take(change)
            for following in self._following(change):
                heapq.heappush(queue, (self._price(following), order, following))
                order += 1

    def _align(self) -> None:
        """Round every width that is reduced at all to a multiple of the alignment."""
        for name, ladder in self._ladder.items():
            if len(ladder) > 1 and ladder[0] % self._rules.step(name):
                change = {name: ladder[1]}
                self.cost -= self._costs.saving(self.widths, change)
                self.widths.update(change)

    def fill_up_to(self, limit: float) -> None:
        """Undo steps that still fit in the budget, the most expensive and latest first."""
        stays: set[str] = set()
        """Groups with a later step that is not undone."""
        for before, after in reversed(self._steps):
            undoable = stays.isdisjoint(after)
            added = -self._costs.saving(self.widths, before) if undoable else math.inf
            if self.cost + added <= limit:
                self.widths.update(before)
                self.cost += added
            else:
                stays.update(after)

    def _openings(self) -> Iterator[Widths]:
        for name, ladder in self._ladder.items():
            at = ladder.index(self.widths[name])
            if at + 1 < len(ladder):
                yield {name: ladder[at + 1]}
        yield from filter(None, (self._removal(names) for names in self._rules.removable))

    def _following(self, change: Widths) -> Iterator[Widths]:
        for name, width in change.items():
            ladder = self._ladder[name]
            if width and width != ladder[-1]:
                yield {name: ladder[ladder.index(width) + 1]}
            for names in self._rules.removable:
                if name in names and (removal := self._removal(names)):
                    yield removal

    def _removal(self, names: tuple[str, ...]) -> Widths | None:
        """The step that removes a block, available when all its groups have their minimum width, or are
        removed already with a branch inside the block.
        """
        at_the_end = all(self.widths[name] in (0, self._ladder[name][-1]) for name in names)
        left = any(self.widths[name] for name in names)
        return dict.fromkeys(names, 0) if at_the_end and left else None

    def _price(self, change: Widths) -> float:
        """Importance lost per unit of cost saved."""
        lost = sum(float(self._worth[n][self.widths[n]] - self._worth[n][w]) for n, w in change.items())
        saved = self._costs.saving(self.widths, change)
        return lost / saved if saved > 0 else np.inf

    def _take(self, change: Widths) -> None:
        before = {name: self.widths[name] for name in change}
        self.cost -= self._costs.saving(self.widths, change)
        self.widths.update(change)
        self._steps.append((before, change))


def _figure(value: float, unit: str) -> str:
    return f"{value:.4g} ms" if unit == "ms" else f"{value:,.0f} {unit}"
