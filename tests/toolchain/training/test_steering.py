"""`--sparsity auto:SHARE`: the share is exactly zero at the end, and pruning then costs nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import PREPROCESSING, learnable_split, random_images

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import build_graph, channel_numbers
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import budget_for, choose_channels, plan_groups, score_channels
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.loop import TrainingData, fit
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions
from slimdeploy.toolchain.training.sparsity import penalised_scales
from slimdeploy.toolchain.training.steering import STEERED, SteeredPenalty, steered_strength

DATA = TrainingData(learnable_split(20), learnable_split(6, seed=1), PREPROCESSING)
OPTIONS = TrainOptions(
    epochs=8, batch_size=16, lr=0.05, sparsity="auto:0.5", sparse_align=1, crop_pad=1, precision="fp32"
)
SPEC = build_graph("tiny-deep", stem="cifar", classes=3)
CHANNELS = 8 + 2 * (4 + 4 + 6 + 8 + 8 + 8)


def _fit(output: Path, options: TrainOptions = OPTIONS) -> tuple[GraphNetwork, list[EpochRecord]]:
    network = build_network(SPEC, seed=options.seed)
    trained, history = fit(network, DATA, options, output=output, device="cpu", setup={})
    return trained.eval(), history


def _pruned(network: GraphNetwork, options: PruneOptions) -> GraphNetwork:
    groups = plan_groups(network.graph, options)
    scores = score_channels(network, None, options)
    kept = choose_channels(network.graph, scores, options, budget_for(network.graph, groups, options, 16))
    return prune_network(network, groups, kept, fold=False)[0]


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.8}, {"schedule": "step", "step_epochs": 3}, {"momentum": 0.0}, {"sparsity": "auto:0.3"}],
    ids=str,
)
def test_the_share_is_exactly_zero_and_pruning_to_it_changes_nothing(tmp_path: Path, changes: dict) -> None:
    options = replace(OPTIONS, **changes, shrink=False)
    share = options.sparsity_target
    assert share is not None
    network, history = _fit(tmp_path / "x", options)
    zeros = sum(int((scale == 0).sum()) for scale in penalised_scales(network, "prunable"))
    assert zeros == int(CHANNELS * share)
    assert history[-1].zero_share == pytest.approx(zeros / CHANNELS)
    assert any(record.strength > 0 for record in history), "λ is in the history"
    assert history[-1].strength == 0, "nothing is penalised any more once the zeros are complete"
    pruned = _pruned(network, PruneOptions(ratio=share, align=1))
    assert sum(channel_numbers(pruned.graph)) == sum(channel_numbers(network.graph)) - zeros
    images = random_images(8)
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), network(images), atol=1e-5, rtol=1e-5)
    before, after = (
        evaluate_network(one, DATA.validation, PREPROCESSING, device="cpu") for one in (network, pruned)
    )
    assert after.accuracy == before.accuracy > 0.5


def test_zeros_come_in_multiples_of_the_alignment(tmp_path: Path) -> None:
    network, _ = _fit(tmp_path / "x", replace(OPTIONS, sparsity="auto:0.25", sparse_align=4, shrink=False))
    pruned = _pruned(network, PruneOptions(ratio=0.25, align=4))
    removed = sum(channel_numbers(network.graph)) - sum(channel_numbers(pruned.graph))
    assert CHANNELS * 0.25 <= removed < CHANNELS * 0.25 + 4
    images = random_images(8)
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), network(images), atol=1e-5, rtol=1e-5)


def test_a_share_out_of_reach_is_refused_before_training(tmp_path: Path) -> None:
    message = r"^sparsity auto:0\.9: .* is out of reach: .*; a smaller share, or a smaller sparse_align$"
    with pytest.raises(SlimdeployError, match=message):
        _fit(tmp_path / "x", replace(OPTIONS, sparsity="auto:0.9"))
    assert not list(tmp_path.iterdir())


def test_the_strength_by_hand() -> None:
    assert steered_strength(0.8, 4.0, 0.25) == pytest.approx(0.5 * 0.8 / 4.0), "half way up the ramp"
    assert steered_strength(0.8, 4.0, 0.6) == pytest.approx(0.8 / 4.0)
    assert steered_strength(0.0, 4.0, 0.9) == 0.0, "all that have to go are there"


def test_without_a_gradient_the_last_one_to_go_arrives_on_time() -> None:
    network = build_network(SPEC, seed=0)
    scales = penalised_scales(network, "prunable")
    spread = np.random.default_rng(0).permutation(np.linspace(0.5, 1.0, CHANNELS))
    start = 0
    with torch.no_grad():
        for scale in scales:
            scale.copy_(torch.from_numpy(spread[start : start + len(scale)]))
            start += len(scale)
    rates = [0.1] * round(70 / STEERED)
    penalty = SteeredPenalty(network, 0.25, rates, align=1, momentum=0.9)
    strengths, largest = [], []
    for number, rate in enumerate(rates[:70]):
        penalty.after_step(rate, number)
        strengths.append(penalty.strength)
        largest.append(max(float(scale.detach().max()) for scale in scales))
    assert strengths[0] == 0, "it is ramped up"
    assert strengths[17] == pytest.approx(strengths[40] / 2, rel=0.3)
    assert strengths[40] == pytest.approx(strengths[60], rel=1e-3), "what was aimed at comes about"
    zeros = torch.cat([scale.detach() for scale in scales]) == 0
    assert int(zeros.sum()) == CHANNELS // 4
    assert largest[0] > largest[34] == largest[69], "in the end the others are let alone"


def test_what_is_settled_stays_zero_and_comes_back_from_a_state() -> None:
    rates = [0.1] * 10
    network, other = build_network(SPEC, seed=0), build_network(SPEC, seed=1)
    penalty = SteeredPenalty(network, 0.5, rates, align=1, momentum=0.0)
    for number in range(8):
        penalty.after_step(0.1, number)
    resumed = SteeredPenalty(other, 0.5, rates, align=1, momentum=0.0)
    assert resumed.state().keys() == penalty.state().keys()
    resumed.restore(penalty.state())
    for scale in resumed.scales:
        scale.data.fill_(1.0)  # as if the optimiser had brought them back
    resumed.after_step(0.1, 8)
    for own, settled in zip(resumed.scales, penalty.scales, strict=True):
        assert torch.equal(own == 0, settled == 0)
