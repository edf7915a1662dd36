"""The exactness that pruning must keep, on random configurations: removing is masking, nothing removed is
nothing changed, and constants are folded where they can be.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import network_specs
from tiny import random_images, random_network, write_checkpoint

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.branches import removable_blocks
from slimdeploy.toolchain.networks.channel_groups import ChannelGroup, channel_groups
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.graph import Graph, Node
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.pruning.costs import parameter_model
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import (
    budget_for,
    channel_budget,
    choose_channels,
    plan_groups,
    score_channels,
)
from slimdeploy.toolchain.pruning.selection import Kept
from slimdeploy.toolchain.pruning.surgery import NOTHING_FOLDED, prune_network
from slimdeploy.toolchain.stages.prune import prune_stage

seeds = st.integers(0, 2**32 - 1)


def _some(groups: list[ChannelGroup], seed: int) -> Kept:
    """From one to all channels of every group, at random; all where a BN has no γ that could be zero."""
    rng = np.random.default_rng(seed)
    kept = {g.name: np.sort(rng.permutation(g.width)[: rng.integers(1, g.width + 1)]) for g in groups}
    return kept | {g.name: np.arange(g.width) for g in groups if any("downsample" in n for n in g.producers)}


def _masked(network: GraphNetwork, groups: list[ChannelGroup], kept: Kept, *, beta: bool) -> GraphNetwork:
    """A copy with γ, and with `beta` also β, of the removed channels at zero."""
    masked = GraphNetwork(network.graph).eval()
    masked.load_state_dict(network.state_dict())
    with torch.no_grad():
        for group in groups:
            removed = np.setdiff1d(np.arange(group.width), kept[group.name])
            for name in group.batchnorms if len(removed) else ():
                masked.get_submodule(name).weight[removed] = 0
                if beta:
                    masked.get_submodule(name).bias[removed] = 0
    return masked


@torch.no_grad()
def _assert_same(expected: GraphNetwork, found: GraphNetwork, size: int = 16) -> None:
    images = random_images(2, size)
    logits = expected(images)
    error = float((logits - found(images)).abs().max())
    assert error <= 1e-5 * max(1.0, float(logits.abs().max()))


def _behind(*between: Node) -> Graph:
    """A 1×1 convolution with BN and ReLU, `between` (it reads "r"), and another 1×1 convolution."""

    def conv(name: str, value: str, channels: int) -> Node:
        pairs = {"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
        return Node(name, "conv", (value,), {"in": channels, "out": 8, "groups": 1, "bias": True, **pairs})

    return Graph((
        conv("c1", "images", 3),
        Node("bn", "batchnorm", ("c1",), {"channels": 8, "eps": 1e-5, "affine": True, "momentum": 0.1}),
        Node("r", "relu", ("bn",), {}), *between, conv("c2", between[-1].name if between else "r", 8),
        Node("g", "adaptive_avg_pool", ("c2",), {"size": [1, 1]}),
        Node("f", "flatten", ("g",), {"positions": 1}),
        Node("fc", "linear", ("f",), {"in": 8, "out": 4, "bias": True}),
    ))  # fmt: skip


AVERAGED = Node("p", "avg_pool", ("r",), {"kernel": [3, 3], "stride": [1, 1], "padding": [1, 1]})
PADDED = Node("q", "pad", ("r",), {"margins": [1, 1, 1, 1]})
POOLED = Node("p", "max_pool", ("q",), {"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0]})


@pytest.mark.parametrize(("between", "exact"), [((), True), ((AVERAGED,), False), ((PADDED, POOLED), False)])
def test_a_padding_anywhere_before_the_reader_makes_folding_approximate(
    between: tuple[Node, ...], exact: bool
) -> None:
    network = random_network(_behind(*between)).eval()
    (group,) = (g for g in channel_groups(network.graph) if "c1" in g.producers)
    kept = {g.name: np.arange(g.width) for g in channel_groups(network.graph)} | {group.name: np.arange(4, 8)}
    with torch.no_grad():
        network.get_submodule("bn").bias.fill_(1.0)
        network.get_submodule("bn").weight[:4] = 0
        found, folding = prune_network(network, channel_groups(network.graph), kept)
        images = random_images(2, 8)
        same = torch.allclose(network(images), found(images), atol=1e-5)
    assert (folding.exact == ("c2",)) == exact == same
    assert (folding.approximate == ("c2",)) != exact


@pytest.mark.parametrize(
    "node",
    [
        Node("z", "prelu", ("r",), {"slopes": 1}),
        Node("z", "prelu", ("r",), {"slopes": 8}),
        Node("z", "multiply_by", ("r",), {"shape": [1], "trained": True}),
        Node("z", "plus", ("r",), {"shape": [8, 1, 1], "trained": True}),
        Node("z", "plus", ("r",), {"shape": [8, 1, 1], "trained": False}),
        Node("z", "layer_norm", ("r",), {"channels": 8, "eps": 1e-5, "affine": True}),
    ],
)
def test_the_budget_counts_the_parameters_that_exist(node: Node) -> None:
    graph = _behind(node)
    groups = channel_groups(graph)
    model = parameter_model(graph, groups, 8)
    assert model.total({group.name: group.width for group in groups}) == network_cost(graph, 8).params


def test_the_biases_that_folding_adds_are_in_the_budget() -> None:
    graph = _behind()
    graph = graph.with_nodes(
        n.with_attributes(bias=False) if n.name in ("c2", "fc") else n for n in graph.nodes
    )
    network, whole = random_network(graph), network_cost(graph, 8).params
    with torch.no_grad():
        network.get_submodule("bn").bias.fill_(1.0)
    for limit in (*range(40, whole, 3), whole):
        options = PruneOptions(params=limit, criterion="l2", align=1, min_channels=1)
        groups = plan_groups(graph, options)
        budget = budget_for(graph, groups, options, 8)
        kept = choose_channels(graph, score_channels(network, None, options), options, budget)
        pruned, _ = prune_network(network, groups, kept)
        assert network_cost(pruned.graph, 8).params <= limit
    assert pruned.graph == graph, "the whole network needs no more than it has"


def test_a_ratio_is_not_cut_off_by_rounding() -> None:
    for ratio, left in ((0.29, 71), (0.57, 43), (0.5, 50)):
        assert channel_budget([], ratio, removed=100).limit == left


@given(network_specs(), seeds)
def test_removing_equals_masking(spec: Graph, seed: int) -> None:
    network, groups = random_network(spec, seed % 1000), channel_groups(spec)
    kept = _some(groups, seed)
    pruned, folding = prune_network(network, groups, kept, fold=False)
    assert folding == NOTHING_FOLDED
    for group in groups:
        assert all(pruned.graph.channels[name] == len(kept[group.name]) for name in group.producers)
    _assert_same(_masked(network, groups, kept, beta=True), pruned)


@given(network_specs(), seeds, st.booleans())
def test_nothing_removed_is_the_identity_bit_for_bit(spec: Graph, seed: int, fold: bool) -> None:
    network, groups = random_network(spec, seed % 1000), channel_groups(spec)
    pruned, folding = prune_network(network, groups, {g.name: np.arange(g.width) for g in groups}, fold=fold)
    assert pruned.graph == spec
    assert folding == NOTHING_FOLDED
    before, after = network.state_dict(), pruned.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any(t.data_ptr() == after[n].data_ptr() for n, t in before.items() if t.numel()), "a copy"


@given(network_specs(), seeds)
def test_constants_fold_exactly_behind_1x1_convolutions(spec: Graph, seed: int) -> None:
    """In a bottleneck network the stem and c2 are read by 1×1 convolutions only."""
    network, groups = random_network(spec, seed % 1000), channel_groups(spec)
    kept = _some(groups, seed)
    for group in groups:
        if any(network.weight(name).shape[2:].numel() > 1 for name in group.consumers):
            kept[group.name] = np.arange(group.width)
    pruned, folding = prune_network(network, groups, kept)
    assert folding.approximate == ()
    constants = []
    for group in groups:
        removed = np.setdiff1d(np.arange(group.width), kept[group.name])
        beta = network.tensors(group.batchnorms[0]).get("bias", torch.zeros(group.width))
        constants.append(int((beta[removed] > 0).sum()))
    assert folding.channels == sum(constants)
    assert set(folding.exact) == {
        name for group, count in zip(groups, constants, strict=True) if count for name in group.consumers
    }
    _assert_same(_masked(network, groups, kept, beta=False), pruned)


@given(seeds, st.sampled_from(["tiny-deep", "tiny-basic"]))
@torch.no_grad()
def test_constants_fold_inside_the_image_behind_3x3_convolutions(seed: int, arch: str) -> None:
    network = random_network(build_graph(arch, stem="cifar"), seed % 1000)
    network.get_submodule("layer1.1.bn1").bias.abs_()  # so that every removed channel passes something on
    groups = channel_groups(network.graph)
    kept: Kept = {g.name: np.arange(g.width) for g in groups}
    kept["layer1.1.conv1"] = np.array([1])
    pruned, folding = prune_network(network, groups, kept)
    assert (folding.exact, folding.approximate) == ((), ("layer1.1.conv2",))
    maps = []
    for one in (_masked(network, groups, kept, beta=False), pruned):
        # A copy: the ReLU that follows works in place.
        one.get_submodule("layer1.1.bn2").register_forward_hook(
            lambda _, __, output: maps.append(output.clone())
        )
        one(random_images(2))
    torch.testing.assert_close(maps[1][..., 1:-1, 1:-1], maps[0][..., 1:-1, 1:-1], atol=1e-4, rtol=1e-5)
    assert not torch.allclose(maps[1], maps[0], atol=1e-3), "zero padding differs at the border"


@given(network_specs(), seeds, st.booleans())
def test_the_original_stays_as_it_is(spec: Graph, seed: int, fold: bool) -> None:
    network = random_network(spec, seed % 1000).train(seed % 2 == 0)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    groups = channel_groups(spec)
    pruned, _ = prune_network(network, groups, _some(groups, seed), fold=fold)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert pruned.training is network.training


@given(network_specs(), seeds, seeds)
def test_pruning_twice_is_pruning_once(spec: Graph, one: int, other: int) -> None:
    network, groups = random_network(spec, one % 1000), channel_groups(spec)
    first = _some(groups, one)
    half, _ = prune_network(network, groups, first, fold=False)
    again = channel_groups(half.graph)
    second = _some(again, other)
    twice, _ = prune_network(half, again, second, fold=False)
    at_once, _ = prune_network(network, groups, {n: first[n][second[n]] for n in first}, fold=False)
    assert twice.graph == at_once.graph
    state = at_once.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in twice.state_dict().items())


@pytest.mark.parametrize("arch", ["tiny-deep", "tiny-basic"])
def test_ratio_0_writes_the_same_network(tmp_path: Path, arch: str) -> None:
    source = write_checkpoint(tmp_path / "source.safetensors", arch)
    prune_stage(source, options=PruneOptions(ratio=0.0), output=tmp_path / "same.safetensors")
    before, after = load_checkpoint(source), load_checkpoint(tmp_path / "same.safetensors")
    assert before.info.graph == after.info.graph
    state = after.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.network.state_dict().items())
    assert after.info.provenance[-1]["parent"] == before.sha256


@pytest.mark.parametrize("minimum", [1, 3, 5])
def test_no_layer_vanishes_and_its_best_channels_stay(tmp_path: Path, minimum: int) -> None:
    source = write_checkpoint(tmp_path / "source.safetensors", "tiny-deep")
    network = load_checkpoint(source).network
    groups = channel_groups(network.graph)
    least, total = sum(min(minimum, g.width) for g in groups), sum(g.width for g in groups)

    def options(channels: float) -> PruneOptions:
        return PruneOptions(ratio=1 - channels / total, min_channels=minimum, align=1, fold=False)

    output = tmp_path / "least.safetensors"
    with pytest.raises(SlimdeployError, match=f"the smallest network .* has {least} of {total} prunable"):
        prune_stage(source, options=options(least - 1.5), output=output)
    prune_stage(source, options=options(least - 0.5), output=output)
    pruned = load_checkpoint(output).network
    for group in groups:
        bn = network.get_submodule(group.batchnorms[0]).weight.detach()
        kept = pruned.get_submodule(group.batchnorms[0]).weight.detach()
        count = min(minimum, group.width)
        assert len(kept) == count
        assert sorted(kept.abs().tolist()) == sorted(bn.abs().tolist())[-count:], "the largest |γ|"


def test_folding_names_a_sum_that_loses_the_constant_of_a_removed_branch() -> None:
    network = random_network(build_graph("tiny-deep", stem="cifar"))
    groups = channel_groups(network.graph)
    inside = {name for block in removable_blocks(network.graph, groups)[:1] for name in block}
    kept = {g.name: np.arange(0 if g.name in inside else g.width) for g in groups}
    pruned, folding = prune_network(network, groups, kept)
    (branch,) = {name.rpartition(".")[0] for name in inside}
    assert folding.lost == (f"{branch}.add",)
    last = network.get_submodule(f"{branch}.bn3")
    with torch.no_grad():
        last.weight.zero_(), last.bias.zero_()  # type: ignore[union-attr, operator]
    pruned, folding = prune_network(network, groups, kept)
    assert folding.lost == ()
    _assert_same(network, pruned)
