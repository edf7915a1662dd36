"""Budgets, alignment and floors of the selection, with numbers worked out by hand and on random scores."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.branches import removable_blocks
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.cutting import pruned_graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.costs import ChannelCount, mac_model, parameter_model
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import budget_for, choose_channels, plan_groups, score_channels
from slimdeploy.toolchain.pruning.selection import Rules, best_channels, select

COUNT = ChannelCount()


def test_in_channels_the_selection_is_the_global_threshold() -> None:
    scores = {"a": np.array([5.0, 1.0, 4.0, 3.0]), "b": np.array([2.0, 6.0, 0.5, 7.0])}
    kept = select(scores, COUNT, 4, Rules(min_channels=1), unit="channels")
    assert {name: list(indices) for name, indices in kept.items()} == {"a": [0, 2], "b": [1, 3]}


def test_the_floor_keeps_the_best_channels_of_a_worthless_layer() -> None:
    scores = {"a": np.array([0.1, 0.3, 0.2, 0.0]), "b": np.arange(4.0) + 5}
    kept = select(scores, COUNT, 6, Rules(min_channels=2), unit="channels")
    assert list(kept["a"]) == [1, 2]
    assert list(kept["b"]) == [0, 1, 2, 3]


def test_equal_scores_keep_the_earlier_channel() -> None:
    assert list(best_channels(np.array([1.0, 2.0, 2.0, 1.0]), 3)) == [0, 1, 2]


def test_a_full_budget_keeps_everything() -> None:
    scores = {"a": np.random.default_rng(0).random(20), "b": np.zeros(7)}
    kept = select(scores, COUNT, 27, Rules(align=8), unit="channels")
    assert [len(kept[n]) for n in "ab"] == [20, 7]


@given(st.integers(0, 2**32), st.sampled_from([1, 8, 16, 32]), st.floats(0.05, 0.95))
def test_widths_are_aligned_within_the_budget_and_near_it(seed: int, align: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    scores = {f"g{i}": rng.exponential(size=int(rng.integers(1, 200))) for i in range(6)}
    total = sum(map(len, scores.values()))
    rules = Rules(align=align)
    least = sum(rules.widths_below(name, len(values))[-1] for name, values in scores.items())
    limit = total * share
    if least > limit:
        with pytest.raises(SlimdeployError, match=f"{least:,} channels"):
            select(scores, COUNT, limit, rules, unit="channels")
        return
    kept = select(scores, COUNT, limit, rules, unit="channels")
    widths = {name: len(indices) for name, indices in kept.items()}
    # No step of `align` channels would fit any more, or nothing had to go but what isn't a multiple.
    aligned = sum(max(rules.widths_below(n, len(v))[-1], len(v) // align * align) for n, v in scores.items())
    assert sum(widths.values()) <= limit
    assert sum(widths.values()) > limit - align or sum(widths.values()) == aligned
    for name, width in widths.items():
        full = len(scores[name])
        unaligned = full < -(-3 // align) * align  # too narrow for any multiple: stays whole
        assert width == full if unaligned else width % align == 0
        assert set(kept[name]) == set(best_channels(scores[name], width))


@pytest.mark.parametrize("residual", ["keep", "couple"])
@pytest.mark.parametrize(("model", "limits"), [("params", (3.94e6, 8e6)), ("macs", (60e6, 130e6))])
def test_parameter_and_mac_budgets_are_met_from_below_within_one_percent(
    residual: str, model: str, limits: tuple[float, ...]
) -> None:
    spec = build_graph("resnet50")
    groups = channel_groups(spec, residual=residual)
    costs = parameter_model(spec, groups, 32) if model == "params" else mac_model(spec, groups, 32)
    rng = np.random.default_rng(1)
    scores = {group.name: rng.exponential(size=group.width) for group in groups}
    for limit in limits:
        kept = select(scores, costs, limit, Rules(align=8), unit=model)
        cost = network_cost(pruned_graph(spec, groups, kept), 32)
        assert 0.99 * limit < getattr(cost, model) <= limit


def test_the_cost_model_counts_what_the_network_costs() -> None:
    spec = build_graph("resnet50", stem="cifar")
    for residual in ("keep", "couple"):
        groups = channel_groups(spec, residual=residual)
        rng = np.random.default_rng(2)
        kept = {g.name: np.arange(rng.integers(1, g.width + 1)) for g in groups}
        widths = {name: len(indices) for name, indices in kept.items()}
        cost = network_cost(pruned_graph(spec, groups, kept), 32)
        assert parameter_model(spec, groups, 32).total(widths) == cost.params
        assert mac_model(spec, groups, 32).total(widths) == cost.macs


def test_a_step_saves_what_the_totals_differ_by() -> None:
    spec = build_graph("resnet18")
    groups = channel_groups(spec, residual="couple")
    costs = mac_model(spec, groups, 32)
    widths = {group.name: group.width for group in groups}
    for group in groups:
        change = {group.name: group.width - 8}
        assert costs.saving(widths, change) == costs.total(widths) - costs.total({**widths, **change})


def test_an_impossible_budget_names_the_smallest_network() -> None:
    spec = build_graph("resnet50")
    groups = channel_groups(spec)
    scores = {group.name: np.ones(group.width) for group in groups}
    with pytest.raises(SlimdeployError, match=r"1,000 parameters is out of reach.*3,0\d\d,\d\d\d parameters"):
        select(scores, parameter_model(spec, groups, 32), 1000, Rules(align=8), unit="parameters")


def test_blocks_go_only_when_allowed_and_whole() -> None:
    spec = build_graph("resnet50")
    groups = channel_groups(spec)
    costs = parameter_model(spec, groups, 32)
    scores = {g.name: np.full(g.width, 0.0 if g.name.startswith("layer4.2") else 1.0) for g in groups}
    removable = removable_blocks(spec, groups)
    assert ("layer4.2.conv1", "layer4.2.conv2") in removable
    assert len(removable) == 16
    limit = costs.total({g.name: g.width for g in groups}) * 0.3
    without = select(scores, costs, limit, Rules(align=8), unit="parameters")
    assert len(without["layer4.2.conv1"]) == 8
    kept = select(scores, costs, limit, Rules(align=8, removable=removable), unit="parameters")
    assert len(kept["layer4.2.conv1"]) == len(kept["layer4.2.conv2"]) == 0
    assert all(len(indices) for name, indices in kept.items() if not name.startswith("layer4.2"))


@pytest.mark.parametrize(
    ("given_options", "message"),
    [
        ({}, "give one target"),
        ({"ratio": 0.5, "params": 1e6}, "not ratio and params"),
        ({"ratio": 1.0}, "ratio must be from 0 to below 1, not 1"),
        ({"params": -3.0}, "params must be above 0"),
        ({"latency_ms": 1.0}, "slimdeploy lut"),
        (
            {"params": 3e6, "latency_table": "t.json"},
            "latency_table is for the target latency_ms, not params",
        ),
        ({"ratio": 0.5, "residual": "coupel"}, "Did you mean 'couple'"),
        ({"ratio": 0.5, "min_channels": 0}, "min_channels must be at least 1"),
        ({"ratio": 0.5, "steps": 0}, "steps must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(given_options: dict[str, object], message: str) -> None:
    with pytest.raises(SlimdeployError, match=message):
        PruneOptions(**given_options)


def test_auto_alignment_comes_from_the_target() -> None:
    aligned = {t: PruneOptions(ratio=0.5, target=t).alignment for t in ("cpu", "tensorrt", "tensorrt-int8")}
    assert aligned == {"cpu": 8, "tensorrt": 8, "tensorrt-int8": 32}
    assert PruneOptions(ratio=0.5, align=1).alignment == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"min_channels": 9999}, "; min_channels below 9999 allows narrower layers$"),
        ({"align": 4096}, "; align below 4096 allows narrower layers$"),
        ({}, "residual keep excludes residual sums"),
        (
            {"residual": "couple", "target": "tensorrt-int8"},
            "; align below 32, the default for target tensorrt-int8,",
        ),
        ({"residual": "couple"}, "; align below 8, the default for target cpu, allows narrower layers$"),
    ],
)
def test_an_impossible_budget_names_the_option_that_binds(options: dict[str, Any], why: str) -> None:
    network = GraphNetwork(build_graph("resnet18"))
    chosen = PruneOptions(ratio=0.999, **options)
    scores = score_channels(network, None, chosen)
    budget = budget_for(network.graph, plan_groups(network.graph, chosen), chosen, 32)
    with pytest.raises(SlimdeployError, match=why):
        choose_channels(network.graph, scores, chosen, budget)


def test_the_default_alignment_isnt_named_where_the_device_computes_more_channels_at_once() -> None:
    network = GraphNetwork(build_graph("resnet18"))
    options = PruneOptions(ratio=0.999, residual="couple")
    scores = score_channels(network, None, options)
    budget = budget_for(network.graph, plan_groups(network.graph, options), options, 32)
    with pytest.raises(SlimdeployError, match=r" has 192 of 2,880 prunable channels$"):
        choose_channels(network.graph, scores, options, replace(budget, granularity=16))
