"""The average of the weights: by hand, in a run, and over an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import PREPROCESSING, random_network
from tiny_runs import DATA, OPTIONS, SPEC, STEPS, Stopped, at_step, run, same, stop, untimed

from slimdeploy.toolchain.training.averaging import WeightAverage
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.sparsity import penalised_scales

AVERAGED = replace(OPTIONS, ema=0.9)


def test_parameters_and_statistics_are_averaged_by_hand() -> None:
    live = random_network(SPEC, seed=0)
    average = WeightAverage(live, 0.25)
    start = {name: tensor.clone() for name, tensor in live.state_dict().items()}
    live.load_state_dict(random_network(SPEC, seed=1).state_dict())
    live.bn1.num_batches_tracked.fill_(7)
    average.update(number=0)  # keeps 1/10 at the first step
    average_after = {name: tensor.clone() for name, tensor in average.network.state_dict().items()}
    average.update(number=100)
    for name, tensor in live.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(average_after[name], tensor)
            continue
        torch.testing.assert_close(average_after[name], 0.1 * start[name] + 0.9 * tensor)
        expected = 0.25 * average_after[name] + 0.75 * tensor
        torch.testing.assert_close(average.network.state_dict()[name], expected)
    assert not average.network.training
    assert not any(p.requires_grad for p in average.network.parameters())


def test_a_channel_that_is_off_is_off_in_the_average() -> None:
    live = random_network(SPEC)
    average = WeightAverage(live, 0.9)
    with torch.no_grad():
        live.bn1.weight[2] = 0.0
        live.bn1.bias[2] = 0.0
        live.bn1.weight[3] = 0.0
    average.update(number=50)
    own = average.network.bn1
    assert (own.weight == 0).nonzero().flatten().tolist() == [2, 3]
    assert (own.bias == 0).nonzero().flatten().tolist() == [2]


def test_the_average_is_what_is_validated_and_kept(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain")
    network, history = run(tmp_path / "averaged", AVERAGED)
    assert not same(plain, network)
    found = evaluate_network(network, DATA.validation, PREPROCESSING, device="cpu")
    assert (history[-1].val_accuracy, history[-1].val_loss) == (found.accuracy, found.loss)


def test_zeros_reach_the_average(tmp_path: Path) -> None:
    network, history = run(tmp_path / "x", replace(AVERAGED, sparsity=0.4, shrink=False))
    gammas = torch.cat([scale.detach() for scale in penalised_scales(network, "prunable")])
    assert history[-1].zero_share == pytest.approx(float((gammas == 0).float().mean()))
    assert history[-1].zero_share > 0


@pytest.mark.parametrize(
    "changes", [{}, {"patience": 4}, {"sparsity": "auto:0.3", "sparse_align": 1}], ids=str
)
@pytest.mark.parametrize("epoch", [2, 4])
def test_a_resumed_run_averages_on(tmp_path: Path, epoch: int, changes: dict) -> None:
    options = replace(AVERAGED, **changes)
    expected, history = run(tmp_path / "whole", options)
    with at_step((epoch - 1) * STEPS + 2, stop), pytest.raises(Stopped):
        run(tmp_path / "broken", options)
    resumed, whole = run(tmp_path / "broken", options, resume=True)
    assert same(expected, resumed)
    assert untimed(whole) == untimed(history)
