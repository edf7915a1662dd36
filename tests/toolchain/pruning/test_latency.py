"""The budget in milliseconds: priced by a table, corrected by measurement."""

import pytest

from slimdeploy.benchmarks.lut import TERMS, LatencyTable, shape_of
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.layers import enumerate_layers
from slimdeploy.toolchain.networks.spec import NetworkSpec, network_spec
from slimdeploy.toolchain.pruning import latency
from slimdeploy.toolchain.pruning.groups import channel_groups

SPEC = network_spec("resnet50")


@pytest.fixture
def table() -> LatencyTable:
    """Every convolution costs 1 µs and what its widths' product costs."""
    values = tuple({"launch": 1e-3, "product": 1e-6}.get(term, 0.0) for term in TERMS)
    shapes = {shape_of(conv): values for conv in enumerate_layers(SPEC, 32).convs()}
    return LatencyTable({"threads": 1}, 1, 1, None, shapes, (0.5, 0.001, 0.0001))


def test_the_model_prices_a_network_as_the_table_does(table: LatencyTable) -> None:
    for residual in ("keep", "couple"):
        groups = channel_groups(SPEC, residual=residual)
        widths = {group.name: group.width for group in groups}
        costs = latency.latency_model(table, SPEC, groups, 32)
        assert costs.total(widths) == pytest.approx(table.network_ms(SPEC, 32))


@pytest.mark.parametrize("factor", [0.4, 0.9, 1.0, 1.3, 2.5])
def test_a_table_that_is_off_is_corrected_by_measuring(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    budgets: list[float] = []

    def plan(budget: float) -> NetworkSpec:
        budgets.append(budget)
        return SPEC

    monkeypatch.setattr(latency, "_measure", lambda *_: budgets[-1] * factor)
    found = latency.budget_that_measures(plan, 10.0, table, 32)
    assert 9.5 <= found * factor <= 10.0


def test_what_is_missed_on_both_sides_is_narrowed_down(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times that rise in steps and twice as fast as predicted: scaling alone swings to and fro."""
    budgets: list[float] = []

    def plan(budget: float) -> NetworkSpec:
        budgets.append(budget)
        return SPEC

    def measured(*_: object) -> float:
        return 10.0 + 2.0 * round(8 * (budgets[-1] - 9.0)) / 8

    monkeypatch.setattr(latency, "_measure", measured)
    found = latency.budget_that_measures(plan, 10.0, table, 32)
    assert 9.5 <= 10.0 + 2.0 * round(8 * (found - 9.0)) / 8 <= 10.0


def test_a_time_that_is_never_reached_says_so(table: LatencyTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_measure", lambda *_: 99.0)
    with pytest.raises(SlimdeployError, match="no network measured within 1 ms in 7 attempts"):
        latency.budget_that_measures(lambda _: SPEC, 1.0, table, 32)
