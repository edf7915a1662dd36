"""The search on models whose truth is known: every layer costs what the test says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.calibrate.comparison import Comparison, compare_logits
from slimdeploy.calibrate.quantiser import best_method
from slimdeploy.calibrate.sensitivity import layers_to_keep, sensitivities
from slimdeploy.toolchain.errors import SlimdeployError


def outcome(drop: float, error: float = 0.0, spread: float = 0.0) -> Comparison:
    return Comparison(0.9, 0.9 - drop / 100, drop, (drop - spread, drop + spread), 0.1, error, 0.99, 1000)


def costing(costs: dict[str, float]):
    """Measures a model in which each quantised layer costs its share of accuracy."""

    def measure(kept: frozenset[str]) -> Comparison:
        cost = sum(c for layer, c in costs.items() if layer not in kept)
        return outcome(cost, cost / 10)

    return measure


def test_each_layer_is_judged_inside_the_quantised_network_and_the_worst_comes_first():
    advanced, measured = [], []
    costs = costing({"a": 1.0, "b": 5.0, "c": 2.0})

    def measure(kept):
        measured.append(kept)
        return costs(kept)

    found = sensitivities(["a", "b", "c"], measure, advance=advanced.append)
    assert [(s.layer, s.drop) for s in found] == [("b", 3.0), ("c", 6.0), ("a", 7.0)]
    assert [s.gain for s in found] == pytest.approx([0.5, 0.2, 0.1])
    assert measured == [frozenset(), *({layer} for layer in "abc")]
    assert advanced == [1, 1, 1]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(0, 1500))
def test_the_fewest_layers_that_fit_are_kept(costs, budget):
    named = {f"layer{i}": float(cost) for i, cost in enumerate(sorted(costs, reverse=True))}
    kept, result = layers_to_keep(list(named), costing(named), max_drop=budget)
    fitting = [n for n in range(1, len(named) + 1) if sum(list(named.values())[n:]) <= budget]
    assert kept == frozenset(list(named)[: fitting[0]])
    assert result.drop == sum(cost for name, cost in named.items() if name not in kept)


def test_a_budget_out_of_reach_keeps_everything():
    kept, result = layers_to_keep(["a", "b"], lambda kept: outcome(5.0), max_drop=1.0)
    assert kept == {"a", "b"}
    assert result.drop == 5.0


def test_of_methods_as_good_as_each_other_the_nearest_logits_win():
    methods = {
        "minmax": outcome(0.1, 0.2, 0.4),
        "mse": outcome(0.25, 0.05, 0.4),
        "entropy": outcome(0.5, 0.01, 0.4),
    }
    assert best_method(methods) == "mse"  # one standard error of the best is 0.204
    assert best_method({"minmax": outcome(0.1, 0.2), "mse": outcome(0.2, 0.1)}) == "minmax"


def test_a_comparison_by_hand():
    baseline = np.float32([[2, 1], [2, 1], [1, 2], [1, 2]])
    logits = np.float32([[2, 1], [1, 2], [1, 2], [1, 4]])
    found = compare_logits(baseline, logits, np.array([0, 0, 1, 0]))
    assert (found.baseline_accuracy, found.accuracy, found.drop) == (0.75, 0.5, 25.0)
    assert (found.top1_agreement, found.max_abs_error, found.images) == (0.75, 2.0, 4)
    assert found.relative_error == pytest.approx(np.sqrt(6 / 20))
    low, high = found.drop_ci95
    assert low < 25 < high
    assert found.to_json()["accuracy"] == {"baseline": 0.75, "quantised": 0.5}


def test_labels_that_do_not_fit():
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(SlimdeployError, match="class index 3, but the model has 3 classes"):
        compare_logits(logits, logits, np.array([0, 3]))
    with pytest.raises(SlimdeployError, match="no images to compare on"):
        compare_logits(logits[:0], logits[:0], np.array([], int))
