"""The L1 penalty on γ, in both forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_network

from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.training.sparsity import (
    add_subgradient,
    penalised_scales,
    proximal_step,
    zero_share,
)


def test_proximal_step_by_hand() -> None:
    scales = [torch.tensor([0.5, -0.5, 0.1, -0.1]), torch.tensor([0.125, 0.0])]
    proximal_step(scales, 0.125)
    assert scales[0].tolist() == [0.375, -0.375, 0.0, 0.0]
    assert scales[1].tolist() == [0.0, 0.0]


@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20), st.floats(0, 1, width=32))
def test_proximal_step_is_the_proximal_operator(values: list[float], threshold: float) -> None:
    before = torch.tensor(values)
    after = before.clone()
    proximal_step([after], threshold)
    expected = torch.sign(before) * torch.clamp(before.abs() - threshold, min=0)
    torch.testing.assert_close(after, expected)
    # What the operator is by definition: the minimiser of ½(x − γ)² + threshold·|x|.
    cost = 0.5 * (after - before) ** 2 + threshold * after.abs()
    for nearby in (after + 1e-2, after - 1e-2):
        assert (cost <= 0.5 * (nearby - before) ** 2 + threshold * nearby.abs() + 1e-6).all()


def test_no_threshold_changes_nothing() -> None:
    scale = torch.tensor([1e-30, -2.0])
    proximal_step([scale], 0.0)
    proximal_step([], 1.0)
    assert scale.tolist() == torch.tensor([1e-30, -2.0]).tolist()


def test_subgradient_adds_the_sign() -> None:
    scale = torch.tensor([0.5, -2.0, 0.0], requires_grad=True)
    scale.grad = torch.tensor([1.0, 1.0, 1.0])
    add_subgradient([scale], 0.25)
    assert scale.grad.tolist() == [1.25, 0.75, 1.0]


def test_penalty_acts_on_the_prunable_scales_or_on_all() -> None:
    network = random_network(build_graph("tiny-deep", stem="imagenet"))
    prunable = {id(scale) for scale in penalised_scales(network, "prunable")}
    names = {name for name, p in network.named_parameters() if id(p) in prunable}
    blocks = ["layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer3.1", "layer4.0"]
    assert names == {"bn1.weight", *(f"{block}.bn{i}.weight" for block in blocks for i in (1, 2))}
    everything = {id(scale) for scale in penalised_scales(network, "all")}
    every_bn = {id(p) for n, p in network.named_parameters() if p.dim() == 1 and n.endswith("weight")}
    assert everything == every_bn
    assert prunable < everything


def test_a_basic_stem_feeds_the_residual_sum_and_is_not_penalised() -> None:
    network = random_network(build_graph("tiny-basic"))
    assert id(network.bn1.weight) not in {id(scale) for scale in penalised_scales(network, "prunable")}


def test_zero_share() -> None:
    assert zero_share([torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1e-30])]) == pytest.approx(0.5)
    assert zero_share([]) == 0.0
