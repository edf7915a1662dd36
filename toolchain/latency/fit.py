"""Fit a latency table to measured networks: pure functions from samples to coefficients.

Every fit minimises the sum of absolute relative errors, like a median, so that networks disturbed by other
programs have no influence. The method is iteratively reweighted least squares (Schlossmacher, JASA 68, 1973)
with non-negative coefficients (Lawson & Hanson, Solving Least Squares Problems, 1974, chapter 23).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimdeploy.toolchain.latency.table import LatencyTable, ends, shape_of, streamed_share, terms, weights_mb
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import Layer, priced_layers

GRANULARITIES = (1, 8, 16, 32)
CACHES_MB = (2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0, 64.0, None)
"""Candidates. The fit uses the granularity that explains the measured layers best, and the cache size that
explains whole runs best. None: no limit.
"""
PASS = 12
"""Networks measured in one pass, i.e. within minutes."""
STEADY = 0.05
"""Passes whose speeds differ by less count as measured at the same speed."""
SEARCH_ROUNDS, ROUNDS = 3, 12
FACTORS = (0.5, 2.0)
"""A run without profiling takes as long as its layers, times a factor in this range. A factor outside comes
from measurements that other programs disturbed: at 0 all layers would cost nothing.
"""
FLOOR = 0.01
"""Relative errors below this count the same: reweighting would divide by zero."""


@dataclass(frozen=True)
class Sample:
    """One measured network: ms of each convolution by name and of the rest, from its profile, and of a whole
    run without profiling.
    """

    graph: Graph
    convs_ms: dict[str, float]
    rest_ms: float
    total_ms: float


def fit(samples: Sequence[Sample], size: int, device: dict[str, Any]) -> LatencyTable:
    """The table that explains `samples` best, given in the order of measurement; at least a few networks of
    different widths are needed.
    """
    table = _fit(samples, size, device)
    evened = even_out(samples, 1 + prediction_errors(table, samples, size))
    return table if evened is samples else _fit(evened, size, device)


def even_out(samples: Sequence[Sample], pace: np.ndarray) -> Sequence[Sample]:
    """`samples`, with passes at another speed of the machine scaled to the common speed.

    `pace` is predicted ÷ measured of each sample: its median over the networks of a pass is the machine's
    speed in that pass. Passes within STEADY of the median are not changed; `samples` itself if that holds for
    all.
    """
    passes = [slice(start, start + PASS) for start in range(0, len(samples), PASS)]
    paces = np.array([np.median(pace[own]) for own in passes])
    factors = paces / np.median(paces)
    factors[np.abs(factors - 1) <= STEADY] = 1.0
    if (factors == 1).all():
        return samples
    return [
        _times(sample, factor) for own, factor in zip(passes, factors, strict=True) for sample in samples[own]
    ]


def _times(sample: Sample, factor: float) -> Sample:
    convs_ms = {name: ms * factor for name, ms in sample.convs_ms.items()}
    return Sample(sample.graph, convs_ms, sample.rest_ms * factor, sample.total_ms * factor)


def _fit(samples: Sequence[Sample], size: int, device: dict[str, Any]) -> LatencyTable:
    networks = _networks(samples, size)
    measured = _by_shape(networks, device)

    def error(granularity: int) -> float:
        fits = (_fit_shape(own, granularity, None, rounds=SEARCH_ROUNDS) for own in measured.values())
        return sum(left for _, left in fits)

    granularity = min(GRANULARITIES, key=error)
    # By whole runs: a profiled run writes its records between the layers, so that more weights leave the
    # cache.
    rest = _fit_rest(samples)
    largest = max(weights_mb(network.convs, device) for network in networks)
    # A cache that holds every network is as good as no limit.
    caches = [mb for mb in CACHES_MB if mb is None or mb < largest]
    tables = [_fit_table(networks, measured, rest, device, granularity, megabytes) for megabytes in caches]
    return _best(tables, networks)


def _fit_table(
    networks: Sequence[_Network],
    measured: dict[str, _Shape],
    rest: np.ndarray,
    device: dict[str, Any],
    granularity: int,
    cache_mb: float | None,
) -> LatencyTable:
    """The table for a given granularity and cache size."""
    shapes = {
        shape: _fit_shape(own, granularity, cache_mb, rounds=ROUNDS)[0] for shape, own in measured.items()
    }
    raw = _table(device, granularity, cache_mb, shapes, rest)

    def converted(scale: float, each: float) -> LatencyTable:
        unprofiled = {shape: scale * found for shape, found in shapes.items()}
        other = np.maximum(scale * rest + np.array([each, 0, 0]), 0)
        return _table(device, granularity, cache_mb, unprofiled, other, each)

    return _best([converted(*found) for found in _fit_totals(networks, raw)], networks)


def _best(tables: Sequence[LatencyTable], networks: Sequence[_Network]) -> LatencyTable:
    """The table that explains whole runs best."""
    return min(tables, key=lambda table: float(np.abs(_errors(table, networks)).mean()))


def prediction_errors(table: LatencyTable, samples: Sequence[Sample], size: int) -> np.ndarray:
    """(predicted − measured) ÷ measured of each sample's whole run."""
    return _errors(table, _networks(samples, size))


def _errors(table: LatencyTable, networks: Sequence[_Network]) -> np.ndarray:
    predicted = np.array([table.layers_ms(network.convs, network.ends) for network in networks])
    return predicted / np.array([network.sample.total_ms for network in networks]) - 1


def least_absolute(
    features: np.ndarray, target: np.ndarray, *, rounds: int = ROUNDS, signed: tuple[int, ...] = ()
) -> np.ndarray:
    """Coefficients (k,) ≥ 0 of `features` (n, k) that minimise Σ |features @ x ÷ target − 1| for target (n,)
    > 0.

    Coefficients of the columns in `signed` may be negative.
    """
    relative = features / target[:, None]
    relative = np.concatenate([relative, -relative[:, list(signed)]], axis=1)
    size = np.abs(relative).max(axis=0)
    scaled = relative / np.where(size > 0, size, 1)
    weights, found = np.ones(len(target)), np.zeros(relative.shape[1])
    for _ in range(rounds):
        weighted = scaled * weights[:, None]
        found = nonnegative(weighted.T @ weighted, weighted.T @ weights, positive=found > 0)
        weights = 1 / np.sqrt(np.maximum(np.abs(scaled @ found - 1), FLOOR))
    found = np.where(size > 0, found / np.where(size > 0, size, 1), 0)
    coefficients = found[: features.shape[1]].copy()
    coefficients[list(signed)] -= found[features.shape[1] :]
    return coefficients


def nonnegative(gram: np.ndarray, moments: np.ndarray, *, positive: np.ndarray | None = None) -> np.ndarray:
    """The x ≥ 0 that minimises ½ xᵀ gram x − momentsᵀ x, by Lawson and Hanson's active sets.

    `positive` (k,): where x is expected to be positive; the search starts there.
    """
    k = len(moments)
    found, passive = np.zeros(k), np.zeros(k, dtype=bool)
    if positive is not None and positive.any():
        best = _solved(gram, moments, positive)
        if (best[positive] > 0).all():
            found, passive = best, positive.copy()
    tolerance = 1e-10 * max(1.0, float(np.abs(moments).max()))
    for _ in range(3 * k):
        gradient = np.where(passive, -np.inf, moments - gram @ found)
        if gradient.max() <= tolerance:
            break
        passive[gradient.argmax()] = True
        while True:
            best = _solved(gram, moments, passive)
            falling = passive & (best <= 0)
            if not falling.any():
                found = best
                break
            # Move towards the optimum until the first coefficient reaches 0; it leaves the active set.
            reach = found[falling] / (found[falling] - best[falling])
            found = found + reach.min() * (best - found)
            passive &= found > 1e-12
            found[~passive] = 0
            if not passive.any():
                break
    return found


def _solved(gram: np.ndarray, moments: np.ndarray, passive: np.ndarray) -> np.ndarray:
    """The minimum with all x = 0 but those that are `passive` (k,)."""
    best = np.zeros(len(moments))
    best[passive] = np.linalg.lstsq(gram[np.ix_(passive, passive)], moments[passive], rcond=None)[0]
    return best


@dataclass(frozen=True)
class _Network:
    """A sample with the layers of its network, which take longer to find than to price."""

    sample: Sample
    convs: list[Layer]
    ends: tuple[int, int]


def _networks(samples: Sequence[Sample], size: int) -> list[_Network]:
    return [_Network(sample, priced_layers(sample.graph, size), ends(sample.graph)) for sample in samples]


@dataclass(frozen=True)
class _Shape:
    """All measured convolutions of one shape, (n,) each."""

    inputs: np.ndarray
    outputs: np.ndarray
    ms: np.ndarray
    weights_mb: np.ndarray
    """Of the whole network in which it was measured."""
    importance: np.ndarray
    """Its share of that network's time."""


def _by_shape(networks: Sequence[_Network], device: dict[str, Any]) -> dict[str, _Shape]:
    rows: dict[str, list[tuple[float, ...]]] = {}
    for network in networks:
        sample, convs = network.sample, network.convs
        total, whole = weights_mb(convs, device), sum(sample.convs_ms.values())
        for conv in convs:
            ms = sample.convs_ms[conv.name]
            row = (conv.in_channels, conv.out_channels, ms, total, ms / whole)
            rows.setdefault(shape_of(conv), []).append(row)
    return {shape: _Shape(*np.array(found, dtype=float).T) for shape, found in rows.items()}


def _fit_shape(
    own: _Shape, granularity: int, cache_mb: float | None, *, rounds: int
) -> tuple[np.ndarray, float]:
    """Coefficients of one shape, and their error as a share of the networks' totals."""
    streamed = streamed_share(own.weights_mb, cache_mb)
    columns = terms(own.inputs, own.outputs, streamed, granularity)
    features = np.stack(np.broadcast_arrays(*columns), axis=1)
    found = least_absolute(features, own.ms, rounds=rounds)
    return found, float((np.abs(features @ found / own.ms - 1) * own.importance).sum())


def _fit_rest(samples: Sequence[Sample]) -> np.ndarray:
    widths = [(1, *ends(sample.graph)) for sample in samples]
    return least_absolute(np.array(widths, dtype=float), np.array([sample.rest_ms for sample in samples]))


def _fit_totals(networks: Sequence[_Network], raw: LatencyTable) -> list[tuple[float, float]]:
    """Candidates for the conversion from layer times to a run without profiling: a factor, and ms per layer.

    The factor alone, and 0 ms, is one of them: the only one if the factor of the other isn't in FACTORS, and
    the better one where most layers would take less than 0 ms, which the table counts as 0.
    """
    predicted = np.array([raw.layers_ms(network.convs, network.ends) for network in networks])
    nodes = np.array([len(network.convs) + 1.0 for network in networks])
    total = np.array([network.sample.total_ms for network in networks])
    (alone,) = least_absolute(predicted[:, None], total)
    scale, each = least_absolute(np.stack([predicted, nodes], axis=1), total, signed=(1,))
    both = [(float(scale), float(each))] if FACTORS[0] <= scale <= FACTORS[1] else []
    return [*both, (float(alone), 0.0)]


def _table(
    device: dict[str, Any],
    granularity: int,
    cache_mb: float | None,
    shapes: dict[str, Any],
    rest: np.ndarray,
    layer_ms: float = 0.0,
) -> LatencyTable:
    values = {shape: tuple(float(c) for c in found) for shape, found in shapes.items()}
    constant, by_stem, by_classifier = (float(c) for c in rest)
    return LatencyTable(
        device,
        int(device["batch"]),
        granularity,
        cache_mb,
        values,
        (constant, by_stem, by_classifier),
        layer_ms,
    )
