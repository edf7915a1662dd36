"""Every criterion by hand, the registry, and the rule that one more is one function."""

import numpy as np
import pytest
import tiny
import torch

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.networks.spec import network_spec
from slimdeploy.toolchain.pruning.activations import measure_inputs
from slimdeploy.toolchain.pruning.criteria import registry
from slimdeploy.toolchain.pruning.criteria.registry import Evidence, channel_scores, register_criterion
from slimdeploy.toolchain.pruning.groups import ChannelGroup, channel_groups


@pytest.fixture
def network() -> ResNet:
    return tiny.random_network(network_spec("tiny-deep", stem="cifar", classes=3))


def score(
    network: ResNet, criterion: str, group: str = "layer1.0.conv1", residual: str = "keep"
) -> np.ndarray:
    groups = [g for g in channel_groups(network.spec, residual=residual) if g.name == group]
    return channel_scores(Evidence(network, None, 0), groups, criterion)[group]


def test_gamma_is_the_scale_of_the_batchnorm(network: ResNet) -> None:
    expected = network.layer1[0].bn1.weight.detach().abs().numpy()
    assert score(network, "gamma") == pytest.approx(expected)


def test_gamma_of_a_stream_counts_a_shortcut_without_affine_as_one(network: ResNet) -> None:
    own = [network.layer1[i].bn3.weight.detach().abs().numpy() for i in range(2)]
    found = score(network, "gamma", "layer1", "couple")
    assert found == pytest.approx((own[0] + own[1] + 1) / 3, rel=1e-6)


def test_norms_are_per_weight(network: ResNet) -> None:
    filters = network.layer1[0].conv1.weight.detach().flatten(1).numpy()
    assert score(network, "l1") == pytest.approx(np.abs(filters).mean(1))
    assert score(network, "l2") == pytest.approx(np.sqrt((filters**2).mean(1)))


def test_fpgm_gives_the_filter_in_the_middle_the_lowest_score(network: ResNet) -> None:
    weight = network.layer1[0].conv1.weight
    with torch.no_grad():
        weight.copy_(torch.arange(len(weight)).float().reshape(-1, 1, 1, 1).expand_as(weight))
    assert np.argmin(score(network, "fpgm")) in (1, 2)  # of 0, 1, 2, 3


def test_random_is_the_same_for_the_same_seed_only(network: ResNet) -> None:
    groups = channel_groups(network.spec)
    first, again, other = (channel_scores(Evidence(network, None, s), groups, "random") for s in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_taylor_is_the_squared_change_of_the_loss_to_first_order(network: ResNet) -> None:
    """Against the derivative with respect to a gate on each channel, image by image."""
    split, name = tiny.random_split(6), "layer2.0.conv2"
    moments = measure_inputs(network, [name], split, tiny.PREPROCESSING, device="cpu")
    from slimdeploy.toolchain.data.batches import plain_batches

    expected = torch.zeros(network.conv(name).in_channels)
    for images, labels in plain_batches(split, tiny.PREPROCESSING, batch_size=1, device="cpu"):
        gate = torch.ones(1, len(expected), 1, 1, requires_grad=True)
        handle = network.conv(name).register_forward_pre_hook(lambda _, given, gate=gate: (given[0] * gate,))
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        handle.remove()
        expected += gate.grad.flatten() ** 2 / len(split)
    assert moments[name].taylor.numpy() == pytest.approx(expected.numpy(), rel=1e-3)


@pytest.mark.parametrize("criterion", ["taylor", "surgeon"])
def test_criteria_that_look_at_images_say_so(network: ResNet, criterion: str) -> None:
    with pytest.raises(SlimdeployError, match=f"{criterion} looks at real images: pass --data"):
        score(network, criterion)


def test_an_unknown_criterion_names_its_nearest(network: ResNet) -> None:
    with pytest.raises(SlimdeployError, match="Did you mean 'gamma'"):
        score(network, "gama")


def test_one_more_criterion_is_one_function(network: ResNet, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.criterion_names()
    monkeypatch.setattr(registry, "CRITERIA", dict(registry.CRITERIA))

    @register_criterion("position")
    def position(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
        return np.arange(group.width, dtype=float)

    assert list(score(network, "position")) == list(range(network.layer1[0].conv1.out_channels))
