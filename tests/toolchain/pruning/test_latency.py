"""The budget in milliseconds: priced by a table, corrected by measurement."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import write_latency_table

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency import backend as lut_backend
from slimdeploy.toolchain.latency import onnxruntime as lut_onnxruntime
from slimdeploy.toolchain.latency.table import TERMS, LatencyTable, shape_of
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cutting import at_widths
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import convolutions
from slimdeploy.toolchain.pruning import latency
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import budget_for, choose_channels, plan_groups

SPEC = build_graph("resnet50")


@pytest.fixture
def table() -> LatencyTable:
    """Every convolution costs 1 µs and what its widths' product costs."""
    values = tuple({"launch": 1e-3, "product": 1e-6}.get(term, 0.0) for term in TERMS)
    shapes = {shape_of(conv): values for conv in convolutions(SPEC, 32)}
    return LatencyTable({"threads": 1}, 1, 1, None, shapes, (0.5, 0.001, 0.0001))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("cache_mb", [None, 30.0, 0.5])
@pytest.mark.parametrize("residual", ["keep", "couple"])
def test_pruning_prices_a_network_as_the_table_does(
    table: LatencyTable, residual: str, cache_mb: float | None, precision: str
) -> None:
    """At full width and pruned, also where the weights leave the cache; a saving is the difference."""
    shapes = {name: (*values[:-1], 2 * values[-3]) for name, values in table.shapes.items()}
    device = {**table.device, "precision": precision}
    table = replace(table, device=device, cache_mb=cache_mb, shapes=shapes, layer_ms=-0.001)
    groups = channel_groups(SPEC, residual=residual)
    costs = latency.LatencyCosts(table, SPEC, groups, 32)
    full = {group.name: group.width for group in groups}
    assert costs.total(full) == pytest.approx(table.network_ms(SPEC, 32))
    changes = {group.name: max(3, group.width // 2) for group in groups[::2]}
    pruned = table.network_ms(at_widths(SPEC, groups, {**full, **changes}), 32)
    assert costs.total({**full, **changes}) == pytest.approx(pruned)
    assert costs.saving(full, changes) == pytest.approx(table.network_ms(SPEC, 32) - pruned)


@pytest.mark.parametrize("align", [1, 8])
def test_steps_are_as_wide_as_what_the_device_computes_at_once(
    table: LatencyTable, tmp_path: Path, align: int
) -> None:
    """Eight of sixteen channels save no time, so a finer alignment than the device's gives the same network,
    not one whose layers stay wide because their next step saves nothing.
    """
    device = {"backend": "onnxruntime-cpu", "threads": 1, "batch": 1, "cpu": "", "cores": 1, "versions": {}}
    path = write_latency_table(tmp_path / "lut.json", replace(table, device=device, granularity=16), SPEC, 32)
    options = PruneOptions(latency_ms=2.0, latency_table=str(path), residual="couple")
    groups = plan_groups(SPEC, options)
    budget = budget_for(SPEC, groups, options, 32)
    scores = {group.name: np.linspace(0, 1 + i % 3, group.width) for i, group in enumerate(groups)}
    coarse = choose_channels(SPEC, scores, replace(options, align=16), budget)
    fine = choose_channels(SPEC, scores, replace(options, align=align), budget)
    assert {name: len(kept) for name, kept in fine.items()} == {n: len(kept) for n, kept in coarse.items()}
    assert len({len(kept) for kept in coarse.values()}) > 3


def test_a_table_of_another_network_is_told_from_a_budget_out_of_reach(table: LatencyTable) -> None:
    """No other width, alignment or criterion would help."""
    shapes = dict(table.shapes)
    del shapes["3x3/2@16"]
    table = replace(table, shapes=shapes)
    with pytest.raises(SlimdeployError) as refused:
        latency.LatencyCosts(table, SPEC, channel_groups(SPEC, residual="keep"), 32)
    assert str(refused.value) == (
        "the latency table has no 3x3/2@16 convolution (layer2.0.conv2): measure one of this network with "
        "slimdeploy lut CHECKPOINT"
    )


def test_a_table_without_linear_layers_says_so(table: LatencyTable) -> None:
    (hidden, *_) = convolutions(SPEC, 32)
    with pytest.raises(SlimdeployError, match=r"^the latency table has no linear layer \(fc1\): measure"):
        table.conv_ms(replace(hidden, name="fc1", operator="linear"))


def another(budget: float) -> Graph:
    """A network of its own for each budget."""
    return replace(SPEC, origin={"budget": budget})


@pytest.mark.parametrize("factor", [0.4, 0.9, 1.0, 1.3, 2.5])
def test_a_table_that_is_off_is_corrected_by_measuring(
    factor: float,
) -> None:
    budgets: list[float] = []

    def plan(budget: float) -> Graph:
        budgets.append(budget)
        return another(budget)

    found = latency.budget_that_measures(plan, 10.0, lambda _: budgets[-1] * factor)
    assert found.measured_ms == found.budget_ms * factor
    assert 9.5 <= found.measured_ms <= 10.0
    assert found.not_measured is None


def test_what_is_missed_on_both_sides_is_narrowed_down() -> None:
    """Times that rise in steps and twice as fast as predicted: scaling alone swings to and fro."""
    budgets: list[float] = []

    def plan(budget: float) -> Graph:
        budgets.append(budget)
        return another(budget)

    def measured(_: Graph) -> float:
        return 10.0 + 2.0 * round(8 * (budgets[-1] - 9.0)) / 8

    found = latency.budget_that_measures(plan, 10.0, measured)
    assert 9.5 <= 10.0 + 2.0 * round(8 * (found.budget_ms - 9.0)) / 8 <= 10.0


def test_a_time_that_is_never_reached_says_so() -> None:
    with pytest.raises(SlimdeployError, match=r"no network measured within 1 ms \(networks measured: 7\)"):
        latency.budget_that_measures(another, 1.0, lambda _: 99.0)


def test_the_search_goes_on_past_a_network_that_it_has_measured() -> None:
    """Three networks: one too slow, one too fast, and between budgets that give these the right one."""

    def plan(budget: float) -> Graph:
        return another(12.0 if budget > 9.2 else 9.8 if budget > 9.1 else 8.0)

    measured: list[float] = []

    def measure(graph: Graph) -> float:
        measured.append(graph.origin["budget"])
        return measured[-1]

    found = latency.budget_that_measures(plan, 10.0, measure)
    assert (found.measured_ms, measured) == (9.8, [12.0, 8.0, 9.8])


def test_the_same_network_is_not_measured_twice() -> None:
    """A network that is faster than the target in whole, and a smallest one that is slower."""
    times = iter([0.3])
    found = latency.budget_that_measures(lambda _: SPEC, 1.0, lambda _: next(times))
    assert found.measured_ms == 0.3
    with pytest.raises(SlimdeployError, match=r"no network measured within 1 ms \(networks measured: 1\)"):
        latency.budget_that_measures(lambda _: SPEC, 1.0, lambda _: 99.0)


def test_a_network_that_is_faster_in_whole_is_measured_once_and_not_reported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def plan(budget: float) -> Graph:
        return another(min(budget, 2.0))

    found = latency.budget_that_measures(plan, 10.0, lambda _: 1.9)
    assert found.measured_ms == 1.9
    assert "slowest network" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (
            {
                "backend": "onnxruntime-cpu",
                "batch": 1,
                "threads": 1,
                "cores": 1,
                "cpu": "a Jetson's",
                "versions": {"onnxruntime": "1"},
            },
            "the latency table is of a Jetson's (here ",
        ),
        (
            {
                "backend": "tensorrt",
                "batch": 1,
                "precision": "fp16",
                "gpu": "Orin",
                "compute_capability": "8.7",
                "versions": {"tensorrt": "10"},
            },
            "this needs tensorrt",
        ),
    ],
)
def test_another_machine_s_table_predicts_only_and_says_why(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    device: dict[str, Any], why: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    path = write_latency_table(tmp_path / "lut.json", replace(table, device=device), SPEC, 32)
    found = latency.budget_for_latency(lambda _: SPEC, 1.0, path, 32)
    assert (found.budget_ms, found.measured_ms) == (1.0, None)
    assert found.not_measured is not None
    assert why in found.not_measured
    assert f"! the latency is predicted only, not measured: {found.not_measured}" in capfd.readouterr().err


def test_the_machine_of_the_table_measures(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = lut_backend.LutOptions(batch=1, threads=1)
    with lut_backend.open_backend(options) as backend:
        here = backend.device
    then = table.network_ms(SPEC, 32)
    path = write_latency_table(tmp_path / "lut.json", replace(table, device=here), SPEC, 32)
    monkeypatch.setattr(
        lut_onnxruntime.OnnxruntimeBackend, "whole_ms", lambda *_, seconds: [0.97] + [then] * 3
    )
    found = latency.budget_for_latency(lambda _: SPEC, 1.0, path, 32)
    assert found == latency.LatencyBudget(1.0, 0.97, None)
