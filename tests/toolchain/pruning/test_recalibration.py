"""BN statistics measured anew: the averages over the images, and nothing else changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import PREPROCESSING, random_network, random_split
from torch import nn

from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.feed import SplitFeed
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.memory_layout import place
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning import recalibration
from slimdeploy.toolchain.pruning.recalibration import recalibrate, shuffled

SPLIT = random_split(24)


def _network() -> GraphNetwork:
    return place(random_network(build_graph("tiny-deep", stem="cifar", classes=3)), "cpu")


@torch.no_grad()
def _statistics(network: GraphNetwork, order: np.ndarray, batch_size: int) -> dict[str, torch.Tensor]:
    """Averages over the batches of each one's mean and unbiased variance, as hooks see them when training,
    each image with the same weight.
    """
    sums: dict[str, list[torch.Tensor]] = {}
    weights = [len(part) / len(order) for part in np.split(order, range(batch_size, len(order), batch_size))]
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def watch(_: nn.Module, inputs: tuple[torch.Tensor], name: str = name) -> None:
                x = inputs[0].double()
                sums.setdefault(f"{name}.running_mean", []).append(x.mean((0, 2, 3)))
                sums.setdefault(f"{name}.running_var", []).append(x.var((0, 2, 3)))

            module.register_forward_pre_hook(watch)
    network.train()
    for images, _ in plain_batches(SPLIT.take(order), PREPROCESSING, batch_size=batch_size, device="cpu"):
        network(images)
    weighed = {name: zip(weights, values, strict=True) for name, values in sums.items()}
    return {name: sum(w * value for w, value in pairs).float() for name, pairs in weighed.items()}


@pytest.mark.parametrize("batch_size", [24, 8, 21])  # the last batch has three images of 24
def test_statistics_are_averages_over_the_images(monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    monkeypatch.setattr(recalibration, "BATCH_SIZE", batch_size)
    network = _network()
    recalibrate(network, shuffled(SPLIT, PREPROCESSING, device="cpu"), device="cpu")
    order = np.random.default_rng(0).permutation(len(SPLIT))
    expected = _statistics(_network(), order, batch_size)
    assert len(expected) == 2 * sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    state = network.state_dict()
    for name, values in expected.items():
        torch.testing.assert_close(state[name], values, rtol=1e-4, atol=1e-5, msg=name)


def test_a_single_image_left_over_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recalibration, "BATCH_SIZE", 23)
    network = _network()
    recalibrate(network, shuffled(SPLIT, PREPROCESSING, device="cpu"), device="cpu")
    assert int(network.get_submodule("bn1").num_batches_tracked) == 1
    assert all(torch.isfinite(tensor).all() for tensor in network.state_dict().values())


def test_batches_of_one_image_are_an_error() -> None:
    single = SplitFeed(SPLIT, PREPROCESSING, "cpu", batch_size=1)
    with pytest.raises(SlimdeployError, match=r"^BN statistics need batches of at least two images$"):
        recalibrate(_network(), single, device="cpu")


@pytest.mark.parametrize("fails", [False, True])
def test_flags_momenta_and_weights_are_put_back(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    network = _network().train()
    network.get_submodule("layer1.0.bn1").eval()  # a frozen one
    network.get_submodule("bn1").momentum = 0.3
    flags = {name: module.training for name, module in network.named_modules()}
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    if fails:
        network.fc.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(RuntimeError, match="out of memory"):
            recalibrate(network, shuffled(SPLIT, PREPROCESSING, device="cpu"), device="cpu")
    else:
        recalibrate(network, shuffled(SPLIT, PREPROCESSING, device="cpu"), device="cpu")
    assert {name: module.training for name, module in network.named_modules()} == flags
    assert network.get_submodule("bn1").momentum == 0.3
    assert network.get_submodule("layer1.0.bn2").momentum == 0.1
    assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters())
