"""Compensation against the least-squares problem that it solves, and the surgeon's costs against brute
force.
"""

import numpy as np
import pytest
import tiny
import torch

from slimdeploy.toolchain.data.feed import SplitFeed
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.pruning import compensation
from slimdeploy.toolchain.pruning.activations import InputMoments, measure_inputs
from slimdeploy.toolchain.pruning.compensation import compensate, surgeon_scores
from slimdeploy.toolchain.pruning.surgery import prune_compensated, prune_network
from slimdeploy.toolchain.runtime.preprocess import normalise


def moments_of(rows: torch.Tensor, outputs: int) -> InputMoments:
    mean = rows.mean(0)
    covariance = rows.T @ rows / len(rows) - torch.outer(mean, mean)
    generator = torch.Generator().manual_seed(3)
    sensitivity = torch.rand(outputs, generator=generator).double() + 0.1
    return InputMoments(mean, covariance, sensitivity, torch.zeros(rows.shape[1]))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """(500, 6) float64: 6 channels made of 4 independent ones and a little noise. The ridge is as good as
    none.
    """
    monkeypatch.setattr(compensation, "RIDGE", 1e-10)
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(500, 4, generator=generator).double()
    mixed = sources @ torch.randn(4, 6, generator=generator).double()
    return mixed + 0.1 * torch.randn(500, 6, generator=generator).double() + 2


def test_compensated_weights_are_the_least_squares_solution(rows: torch.Tensor) -> None:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    kept = torch.tensor([0, 2, 3, 5])
    found = compensate(weight, moments_of(rows, 3), kept)
    design = torch.cat([rows[:, kept], torch.ones(len(rows), 1).double()], 1)
    best = torch.linalg.lstsq(design, rows @ weight.T).solution  # (kept + 1, 3)
    assert torch.allclose(found.weight, best[:-1].T, atol=1e-5)
    assert torch.allclose(found.shift, best[-1], atol=1e-5)


def test_a_constant_channel_is_folded_exactly(rows: torch.Tensor) -> None:
    rows = torch.cat([rows, torch.full((500, 1), 1.5).double()], 1)
    weight = torch.randn(3, 7, 3, 3, generator=torch.Generator().manual_seed(1)).double()
    found = compensate(weight, moments_of(rows, 3), torch.arange(6))
    assert torch.allclose(found.weight, weight[:, :6], atol=1e-6)
    assert torch.allclose(found.shift, 1.5 * weight[:, 6].sum((1, 2)), atol=1e-6)


def test_surgeon_removes_first_what_costs_least_after_compensation(rows: torch.Tensor) -> None:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    moments = moments_of(rows, 3)
    scores = surgeon_scores([(weight, moments)], chunk=1)

    def loss_without(removed: list[int]) -> float:
        kept = torch.tensor([i for i in range(6) if i not in removed])
        found = compensate(weight, moments, kept)
        error = rows @ weight.T - rows[:, kept] @ found.weight.T - found.shift
        return float((error.square().mean(0) * moments.sensitivity).sum() / 2)

    singles = [loss_without([i]) for i in range(6)]
    first = int(np.argmin(scores))
    assert first == int(np.argmin(singles))
    assert scores[first] == pytest.approx(singles[first], rel=1e-4)
    # Removed one after the other, the scores add up to what removing both costs.
    second = int(np.argsort(scores)[1])
    assert scores[first] + scores[second] == pytest.approx(loss_without([first, second]), rel=1e-4)
    assert (np.diff(np.sort(scores)) >= 0).all()


def test_moments_are_the_plain_ones_and_leave_the_network_as_it_was() -> None:
    network = tiny.random_network(build_graph("tiny-deep", stem="cifar", classes=3))
    network.get_submodule("layer1.0.bn1").train()
    split = tiny.random_split(24)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    moments = measure_inputs(
        network, ["layer1.0.conv2", "fc"], SplitFeed(split, tiny.PREPROCESSING, "cpu"), device="cpu"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())
    inputs: list[torch.Tensor] = []
    layer = network.get_submodule("layer1.0.conv2")
    layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    from slimdeploy.toolchain.data.batches import plain_batches

    for images, _ in plain_batches(split, tiny.PREPROCESSING, batch_size=24, device="cpu"):
        network.eval()(images)
    flat = inputs[0].movedim(1, -1).flatten(0, 2).double()
    found = moments["layer1.0.conv2"]
    assert torch.allclose(found.mean, flat.mean(0), atol=1e-5)
    assert torch.allclose(found.covariance, torch.cov(flat.T, correction=0), atol=1e-4)
    assert (found.taylor >= 0).all()
    assert (moments["fc"].sensitivity > 0).all()


@pytest.mark.parametrize("residual", ["keep", "couple"])
def test_compensation_brings_a_pruned_network_nearer_to_the_original(residual: str) -> None:
    network = tiny.random_network(build_graph("tiny-deep", stem="cifar", classes=3))
    groups = [
        g for g in channel_groups(network.graph, residual="couple") if g.residual == (residual == "couple")
    ]
    split = tiny.random_split(60)
    readers = {name for group in groups for name in group.consumers}
    moments = measure_inputs(network, readers, SplitFeed(split, tiny.PREPROCESSING, "cpu"), device="cpu")
    images = torch.from_numpy(normalise(split.images, tiny.PREPROCESSING))
    gains = []
    for group in groups:  # one at a time: a random network's errors multiply from layer to layer
        kept = {group.name: np.arange(2, group.width)}
        with torch.no_grad():
            wanted = network(images)
            plain = prune_network(network, [group], kept, fold=False)[0](images)
            compensated = prune_compensated(network, [group], kept, moments)(images)
        gains.append(float((plain - wanted).square().mean() / (compensated - wanted).square().mean()))
    assert np.median(gains) > 1.2


def test_nothing_removed_is_the_identity_bit_for_bit() -> None:
    network = tiny.random_network(build_graph("tiny-deep", stem="cifar", classes=3))
    groups = channel_groups(network.graph, residual="couple")
    readers = {name for group in groups for name in group.consumers}
    moments = measure_inputs(
        network, readers, SplitFeed(tiny.random_split(24), tiny.PREPROCESSING, "cpu"), device="cpu"
    )
    kept = {group.name: np.arange(group.width) for group in groups}
    same = prune_compensated(network, groups, kept, moments)
    assert all(torch.equal(t, network.state_dict()[n]) for n, t in same.state_dict().items())


def test_channels_that_sparse_training_silenced_are_folded_without_noise() -> None:
    """γ = 0 in removed and kept channels alike: their constants must not be mistaken for predictors."""
    network = tiny.random_network(build_graph("tiny-deep", stem="cifar", classes=3))
    bn = network.get_submodule("layer1.0.bn1")
    with torch.no_grad():
        bn.weight[:] = torch.tensor([1.0, 0.0, 0.0, 0.5])
        bn.bias[:] = torch.tensor([0.1, 3.0, 5.0, 0.2])
    moments = measure_inputs(
        network, ["layer1.0.conv2"], SplitFeed(tiny.random_split(24), tiny.PREPROCESSING, "cpu"), device="cpu"
    )
    found = compensate(network.weight("layer1.0.conv2"), moments["layer1.0.conv2"], torch.tensor([0, 2, 3]))
    weight = network.weight("layer1.0.conv2").detach()
    assert torch.allclose(found.weight, weight[:, [0, 2, 3]], atol=1e-5)
    assert torch.allclose(found.shift, 3.0 * weight[:, 1].sum((1, 2)).double(), atol=1e-4)
