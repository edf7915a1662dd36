"""Every criterion by hand, the registry, and the rule that one more is one function."""

import numpy as np
import pytest
import tiny
import torch

from slimdeploy.toolchain.data.feed import SplitFeed
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.channel_groups import ChannelGroup, channel_groups
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.activations import measure_inputs
from slimdeploy.toolchain.pruning.criterion import CRITERIA, Evidence, channel_scores, criterion


@pytest.fixture
def network() -> GraphNetwork:
    return tiny.random_network(build_graph("tiny-deep", stem="cifar", classes=3))


def score(
    network: GraphNetwork, criterion: str, group: str = "layer1.0.conv1", residual: str = "keep"
) -> np.ndarray:
    groups = [g for g in channel_groups(network.graph, residual=residual) if g.name == group]
    return channel_scores(Evidence(network, None, 0), groups, criterion)[group]


@pytest.mark.parametrize("name", CRITERIA)
def test_channels_that_nothing_reads_have_a_score(name: str) -> None:
    class Sliced(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[2](self[1](self[0](x))[:, :5]).mean((2, 3))

    network = from_module(
        Sliced(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(5, 3, 1)), size=16
    ).network
    feed = SplitFeed(tiny.random_split(8), tiny.PREPROCESSING, "cpu")
    moments, groups = measure_inputs(network, ["2"], feed, device="cpu"), channel_groups(network.graph)
    scores = channel_scores(Evidence(network, moments, 0), groups, name)
    assert [(scores[g.name].shape, g.consumers) for g in groups] == [((5,), ("2",)), ((3,), ())]
    assert not CRITERIA[name].needs_data or not scores[groups[1].name].any()


def test_gamma_is_the_scale_of_the_batchnorm(network: GraphNetwork) -> None:
    expected = network.weight("layer1.0.bn1").detach().abs().numpy()
    assert score(network, "gamma") == pytest.approx(expected)


def test_gamma_of_a_stream_counts_a_shortcut_without_affine_as_one(network: GraphNetwork) -> None:
    own = [network.weight(f"layer1.{i}.bn3").detach().abs().numpy() for i in range(2)]
    found = score(network, "gamma", "layer1.0.conv3", "couple")
    assert found == pytest.approx((own[0] + own[1] + 1) / 3, rel=1e-6)


def test_norms_are_per_weight(network: GraphNetwork) -> None:
    filters = network.weight("layer1.0.conv1").detach().flatten(1).numpy()
    assert score(network, "l1") == pytest.approx(np.abs(filters).mean(1))
    assert score(network, "l2") == pytest.approx(np.sqrt((filters**2).mean(1)))


def test_fpgm_gives_the_filter_in_the_middle_the_lowest_score(network: GraphNetwork) -> None:
    weight = network.weight("layer1.0.conv1")
    with torch.no_grad():
        weight.copy_(torch.arange(len(weight)).float().reshape(-1, 1, 1, 1).expand_as(weight))
    assert np.argmin(score(network, "fpgm")) in (1, 2)  # of 0, 1, 2, 3


def test_random_is_the_same_for_the_same_seed_only(network: GraphNetwork) -> None:
    groups = channel_groups(network.graph)
    first, again, other = (channel_scores(Evidence(network, None, s), groups, "random") for s in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_taylor_is_the_squared_change_of_the_loss_to_first_order(network: GraphNetwork) -> None:
    """Against the derivative with respect to a gate on each channel, image by image."""
    split, name = tiny.random_split(6), "layer2.0.conv2"
    moments = measure_inputs(network, [name], SplitFeed(split, tiny.PREPROCESSING, "cpu"), device="cpu")
    from slimdeploy.toolchain.data.batches import plain_batches

    expected = torch.zeros(network.get_submodule(name).in_channels)
    for images, labels in plain_batches(split, tiny.PREPROCESSING, batch_size=1, device="cpu"):
        gate = torch.ones(1, len(expected), 1, 1, requires_grad=True)
        handle = network.get_submodule(name).register_forward_pre_hook(
            lambda _, given, gate=gate: (given[0] * gate,)
        )
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        handle.remove()
        expected += gate.grad.flatten() ** 2 / len(split)
    assert moments[name].taylor.numpy() == pytest.approx(expected.numpy(), rel=1e-3)


@pytest.mark.parametrize("criterion", ["taylor", "surgeon"])
def test_criteria_that_look_at_images_say_so(network: GraphNetwork, criterion: str) -> None:
    with pytest.raises(SlimdeployError, match=f"{criterion} needs real images: pass data"):
        score(network, criterion)


def test_an_unknown_criterion_names_its_nearest(network: GraphNetwork) -> None:
    with pytest.raises(SlimdeployError, match="Did you mean 'gamma'"):
        score(network, "gama")


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], r"returned \(1,\) scores for the \d+ channels of layer1\.0"),
        ([np.nan], "NaN or infinite"),
    ],
)
def test_scores_that_cannot_be_are_refused(
    network: GraphNetwork, monkeypatch: pytest.MonkeyPatch, scores: list[float], message: str
) -> None:
    def wrong(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
        return np.array(scores if scores == [1.0] else scores * group.width)

    monkeypatch.setitem(CRITERIA, "wrong", criterion()(wrong))
    with pytest.raises(SlimdeployError, match=message):
        score(network, "wrong")


def test_one_more_criterion_is_one_function(network: GraphNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    @criterion()
    def position(evidence: Evidence, group: ChannelGroup) -> np.ndarray:
        return np.arange(group.width, dtype=float)

    monkeypatch.setitem(CRITERIA, "position", position)
    assert list(score(network, "position")) == list(range(network.graph.channels["layer1.0.conv1"]))
