"""Pruning to a latency: predicted by a latency table, then measured on this machine and corrected.

Milliseconds refer to the machine's speed when the table was measured. A later change of its speed
(latency/drift.py) is not caused by the network, and is not corrected for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError, missing_library
from slimdeploy.toolchain.latency.backend import open_for_table
from slimdeploy.toolchain.latency.drift import measure_with_drift
from slimdeploy.toolchain.latency.measure import samples_of
from slimdeploy.toolchain.latency.table import KIND, LatencyTable, table_of, weights_mb
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.channel_groups import ChannelGroup
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import Layer, priced_layers
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.costs import CostModel, Price, Widths

TOLERANCE = 0.05
"""Tolerance: how far below the requested time a network may be."""
ATTEMPTS = 7
MEASURE_S = 3.0
ANCHORS = 3
"""Number of networks of the table that are timed with each candidate, to measure the drift."""
NOTABLE_DRIFT = 0.1
"""Drift that is reported."""

Parts = tuple[float, float, float]
"""Milliseconds with all weights in the cache; additional milliseconds with none in it; MB of weights."""
Plan = Callable[[float], Graph]
"""Builds the network for a budget in predicted milliseconds."""


@dataclass(frozen=True)
class LatencyBudget:
    """A budget in predicted milliseconds, and the measured time of its network."""

    budget_ms: float
    measured_ms: float | None
    """At the machine's speed when the table was measured."""
    not_measured: str | None
    """Why the time is only predicted; None if it was measured."""


class LatencyCosts:
    """Prices widths in ms as `LatencyTable.network_ms` does, and raises what it raises. The cost of weights
    that do not fit in the cache is no sum over layers: it depends on the size of the whole network.
    """

    def __init__(self, table: LatencyTable, graph: Graph, groups: list[ChannelGroup], size: int) -> None:
        table.network_ms(graph, size)
        layers = priced_layers(graph, size)
        priced = {layer.name for layer in layers}
        self._fit = table.streamed(weights_mb(layers, table.device)) == 0

        def of_priced(price: Price) -> CostModel:
            def own(layer: Layer) -> float:
                return price(layer) if layer.name in priced else 0.0

            return CostModel(graph, groups, size=size, price=own)

        self._table, self._names = table, [group.name for group in groups]
        self._cached = _cached_model(table, graph, groups, size, priced)
        self._streaming = of_priced(table.streaming_ms)
        self._weights = of_priced(lambda layer: weights_mb([layer], table.device))
        self._last: tuple[tuple[int, ...], Parts] | None = None

    def total(self, widths: Widths) -> float:
        """Milliseconds of the whole network at `widths`."""
        return self._cached.total(widths) if self._fit else self._ms(self._parts(widths))

    def saving(self, widths: Widths, changes: Widths) -> float:
        """Milliseconds saved when `widths` are changed as given."""
        if self._fit:  # the weights fit in the cache, and so do those of every narrower network
            return self._cached.saving(widths, changes)
        before = self._parts(widths)
        models = (self._cached, self._streaming, self._weights)
        less = [model.saving(widths, changes) for model in models]
        cached, streaming, weights = (a - b for a, b in zip(before, less, strict=True))
        return self._ms(before) - self._ms((cached, streaming, weights))

    def _ms(self, parts: Parts) -> float:
        cached, streaming, weights = parts
        return cached + streaming * self._table.streamed(weights)

    def _parts(self, widths: Widths) -> Parts:
        """Cached for the last `widths`: a selection asks for many changes of the same widths."""
        key = tuple(widths[name] for name in self._names)
        if self._last is None or self._last[0] != key:
            own = self._cached.total(widths), self._streaming.total(widths), self._weights.total(widths)
            self._last = key, own
        return self._last[1]


def _cached_model(
    table: LatencyTable, graph: Graph, groups: list[ChannelGroup], size: int, priced: set[str]
) -> CostModel:
    """Milliseconds if all weights fit in the cache."""
    constant, by_stem, by_classifier = table.rest
    weighted = [node.name for node in graph.nodes if node.operator in ("conv", "linear")]

    def price(layer: Layer) -> float:
        ms = table.conv_ms(layer) if layer.name in priced else 0.0
        ms += by_stem * layer.out_channels if layer.name == weighted[0] else 0.0
        return ms + (by_classifier * layer.in_channels if layer.name == weighted[-1] else 0.0)

    return CostModel(
        graph,
        groups,
        size=size,
        price=price,
        fixed=constant,
    )


def budget_for_latency(
    plan: Plan, target_ms: float, path: Path, size: int, *, measure: bool = True
) -> LatencyBudget:
    """The budget whose network takes at most `target_ms` according to the table at `path`. It is corrected by
    measurements if this machine is that of the table and `measure` is set; otherwise a log line says that the
    time is only predicted.

    Raises SlimdeployError if no network is measured within the tolerance.
    """
    if not measure:
        return LatencyBudget(target_ms, None, "not asked for")
    document = results.read(path, KIND)
    try:
        backend = open_for_table(table_of(document, path).device)
    except (ModuleNotFoundError, SlimdeployError) as error:
        why = missing_library(error) if isinstance(error, ModuleNotFoundError) else error
        if why is None:
            raise
        log(f"! the latency is predicted only, not measured: {why}")
        return LatencyBudget(target_ms, None, str(why))
    samples = samples_of(document, path)
    with backend:
        anchors = ANCHORS if backend.revisits else 0  # building an engine for each takes minutes

        def steady_ms(graph: Graph) -> float:
            found = measure_with_drift(backend, [graph], samples, size, anchors=anchors, seconds=MEASURE_S)
            if abs(found.drift - 1) > NOTABLE_DRIFT:
                log(
                    f"! the table's networks now take {found.drift:.2f}× as long; measured times are "
                    "divided by it"
                )
            return found.ms[0] / found.drift

        return budget_that_measures(plan, target_ms, steady_ms)


def budget_that_measures(plan: Plan, target_ms: float, measure: Callable[[Graph], float]) -> LatencyBudget:
    """The predicted budget whose network takes at most `target_ms` by `measure`, and at most TOLERANCE less.

    Networks are timed with random weights, which take the same time. Raises SlimdeployError if no network is
    measured within the tolerance. The whole network may be faster.
    """
    wanted_ms = target_ms * (1 - TOLERANCE / 2)
    budget, fast, slow, whole = target_ms, None, None, plan(math.inf)
    times: dict[Graph, float] = {}
    for _ in range(ATTEMPTS):
        graph = plan(budget)
        if graph not in times:  # several budgets may give the same network, such as the whole one
            times[graph] = measure(graph)
            log(f"budget {budget:.3f} ms, measured {times[graph]:.3f} ms, wanted {target_ms:g} ms")
        measured = times[graph]
        in_tolerance = target_ms * (1 - TOLERANCE) <= measured <= target_ms
        if in_tolerance or (measured <= target_ms and graph == whole):  # no network is slower
            return LatencyBudget(budget, measured, None)
        if measured > target_ms:
            slow = budget, measured
        elif fast is None or budget > fast[0]:
            fast = budget, measured
        if fast and slow and fast[0] < slow[0]:
            share = (wanted_ms - fast[1]) / (slow[1] - fast[1])
            budget = fast[0] + share * (slow[0] - fast[0])
        else:  # do not follow one disturbed measurement
            budget *= min(2.0, max(0.5, wanted_ms / measured))
    if fast is None:
        raise SlimdeployError(
            f"no network measured within {target_ms:g} ms (networks measured: {len(times)}): "
            "is the machine busy, or is the latency table from another machine?"
        )
    log(f"! the slowest network found below {target_ms:g} ms is more than {TOLERANCE:.0%} faster than that")
    return LatencyBudget(*fast, None)
