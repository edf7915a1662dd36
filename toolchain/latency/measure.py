"""Measure a latency table: networks of the architecture at random widths, profiled layer by layer.

A convolution is timed inside a network, between its neighbours, with the cache content and the fusions of a
real run. In a separate session its time would include the overhead of the session and layout changes at both
ends.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency.backend import LutBackend
from slimdeploy.toolchain.latency.fit import PASS, Sample, fit, prediction_errors
from slimdeploy.toolchain.latency.networks import random_network
from slimdeploy.toolchain.latency.table import KIND, LatencyTable
from slimdeploy.toolchain.launch import cpu_count
from slimdeploy.toolchain.measure import conditions, results
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cutting import at_widths, widths_of
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import priced_layers

AGREE = 0.05
"""If two measurements of a network differ by more than this share, it is measured a third time."""
MINIMUM_PASSES = 4
STABLE = 0.01
"""The table is stable if a pass changed its prediction of half of all networks by less than this share."""


@dataclass(frozen=True)
class LutResult:
    """A table and the quality of its fit. `errors` are relative: the networks of the last pass, as predicted
    by the table before that pass; empty after the first pass.
    """

    table: LatencyTable
    networks: int
    stable: bool
    errors: tuple[float, ...]
    remarks: tuple[str, ...]
    """Problems of the measurement: the machine was busy or throttled."""

    @property
    def median_error(self) -> float | None:
        return float(np.median(np.abs(self.errors))) if self.errors else None

    @property
    def worst_error(self) -> float | None:
        return float(np.max(np.abs(self.errors))) if self.errors else None


def measure_table(
    graph: Graph,
    size: int,
    backend: LutBackend,
    output: Path,
    *,
    seconds: float,
    progress: Callable[[str], None] = lambda message: None,
) -> LutResult:
    """Measure networks like `graph` but narrower on `backend`, fit the table and write it to `output` after
    each pass, until it is stable or `seconds` are over. The first pass is always completed.

    Continues from the networks in `output`. Raises SlimdeployError if they were measured on another device,
    with other versions, or for another network.
    """
    full, device = graph, backend.device
    state = conditions.state()
    samples = _resume(output, full, size, device)
    table = fit(samples, size, device) if samples else None
    stable, begin, errors = False, time.perf_counter(), np.empty(0)
    passes = len(samples) // PASS

    def result() -> LutResult:
        assert table is not None
        said = conditions.remarks(state, conditions.state(), cores=cpu_count())
        return LutResult(table, len(samples), stable, tuple(errors.tolist()), tuple(said))

    while not samples or (time.perf_counter() - begin < seconds and not stable):
        rng = random.Random(passes)
        drawn = [full] if not samples else []
        drawn += [random_network(full, rng) for _ in range(PASS - len(drawn))]
        rng.shuffle(drawn)
        visits: list[list[Sample]] = [[] for _ in drawn]
        for place in _route(visits) if backend.revisits else range(len(drawn)):
            if samples and time.perf_counter() - begin >= seconds:
                return result()  # do not fit a part of a pass; the same networks would be drawn again
            visits[place].append(backend.profile(drawn[place], size))
        found = [_undisturbed(of_one) for of_one in visits]
        before, passes = table, passes + 1
        samples += found
        table = fit(samples, size, device)
        if before:
            errors = prediction_errors(before, found, size)
            stable = passes >= MINIMUM_PASSES and _moved(before, table, samples, size) < STABLE
        _write(output, full, size, samples, result())
        progress(_progress(result(), time.perf_counter() - begin, seconds))
    return result()


def _route(visits: list[list[Sample]]) -> Iterator[int]:
    """Measure every network of a pass in order and in reverse, and again those whose `visits` differ."""
    yield from range(len(visits))
    yield from reversed(range(len(visits)))
    for place, of_one in enumerate(visits):
        times = [sample.total_ms for sample in of_one]
        if max(times) > (1 + AGREE) * min(times):
            yield place


def _undisturbed(visits: list[Sample]) -> Sample:
    """The fastest profile and the fastest whole run: other programs only slow it down, for seconds at a time,
    and by half if two threads share a core.
    """
    profiled = min(visits, key=lambda sample: sample.rest_ms + sum(sample.convs_ms.values()))
    return replace(profiled, total_ms=min(sample.total_ms for sample in visits))


def _progress(result: LutResult, spent: float, seconds: float) -> str:
    error = result.median_error
    told = "" if error is None else f", the last {PASS} predicted within {error:.1%}"
    return f"{result.networks} networks, {spent:.0f} of at most {seconds:.0f} s{told}"


def _moved(before: LatencyTable, after: LatencyTable, samples: list[Sample], size: int) -> float:
    """How much the last fit changed the predictions, as the median share."""
    ratios = [after.network_ms(one.graph, size) / before.network_ms(one.graph, size) for one in samples]
    return float(np.median(np.abs(np.array(ratios) - 1)))


def _resume(output: Path, full: Graph, size: int, device: dict[str, Any]) -> list[Sample]:
    """The networks in `output`; none if it doesn't exist."""
    if not output.exists():
        return []
    document = results.read(output, KIND)
    for what, theirs, ours in (
        ("on", document.get("device"), device),
        ("of", document.get("network"), _network(full, size)),
    ):
        if theirs != ours:
            raise SlimdeployError(
                f"{output} was measured {what} {_differing(theirs, ours)}: name another `output` or remove it"
            )
    return samples_of(document, output)


def full_network(document: dict[str, Any]) -> Graph:
    """The unpruned network of a `lut` document."""
    network = document["network"]
    if "graph" in network:
        return Graph.from_json(network["graph"])
    return build_graph(network["arch"], stem=network["stem"], classes=network["classes"])


def samples_of(document: dict[str, Any], path: Path) -> list[Sample]:
    """The networks to which the `lut` document from `path` was fitted.

    Raises SlimdeployError if they can't be read.
    """
    try:
        full = full_network(document)
        return [_sample(row, full, int(document["network"]["size"])) for row in document["samples"]]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise SlimdeployError(f"{path}: damaged latency table ({error!r}): remove it") from error


def _differing(theirs: Any, ours: dict[str, Any]) -> str:
    """`batch 1 (here 64), …`: the differing entries."""
    theirs = theirs if isinstance(theirs, dict) else {}
    unsaid = {"precision": "fp32"}
    parts = [
        "another graph"
        if key == "graph"  # pages of JSON
        else f"{key} {theirs.get(key, unsaid.get(key))} (here {ours.get(key, unsaid.get(key))})"
        for key in dict.fromkeys([*ours, *theirs])
        if theirs.get(key) != ours.get(key)
    ]
    return ", ".join(parts) or "something else"


def _network(full: Graph, size: int) -> dict[str, Any]:
    return {"arch": full.arch, "classes": full.classes, "size": size, "graph": full.to_json()}


def _sample(row: dict[str, Any], full: Graph, size: int) -> Sample:
    if "channels" in row:  # a ResNet, in the format of older tables
        graph = build_graph(
            full.arch, stem=full.origin["stem"], classes=full.classes, channels=tuple(row["channels"])
        )
    else:
        groups = channel_groups(full, residual="couple")
        graph = at_widths(full, groups, {g.name: int(n) for g, n in zip(groups, row["widths"], strict=True)})
    names = [conv.name for conv in priced_layers(graph, size)]
    convs_ms = {name: float(ms) for name, ms in zip(names, row["convs_ms"], strict=True)}
    return Sample(graph, convs_ms, float(row["rest_ms"]), float(row["total_ms"]))


def _write(output: Path, full: Graph, size: int, samples: list[Sample], result: LutResult) -> None:
    groups = channel_groups(full, residual="couple")
    rows = [
        {
            "widths": widths_of(sample.graph, full, groups),
            "total_ms": _rounded(sample.total_ms),
            "rest_ms": _rounded(sample.rest_ms),
            "convs_ms": [_rounded(ms) for ms in sample.convs_ms.values()],
        }
        for sample in samples
    ]
    document = results.document(
        KIND,
        command=f"slimdeploy {' '.join(sys.argv[1:])}",
        device=result.table.device,
        network=_network(full, size),
        stable=result.stable,
        errors=[round(error, 4) for error in result.errors],
        remarks=list(result.remarks),
        model=result.table.to_json(),
        samples=rows,
    )
    results.write(output, document)


def _rounded(ms: float) -> float:
    """Six digits: beyond the resolution of any clock."""
    return float(f"{ms:.6g}")
