"""Any CNN: imported with the same logits, removing is masking, ONNX computes the same."""

from __future__ import annotations

import copy
import json

import numpy as np
import onnxruntime
import pytest
import torch
from families import CLASSES, FAMILIES, SIZE, family

from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cost import network_cost, parameter_count
from slimdeploy.toolchain.networks.cutting import keep_masks
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.residual import batchnorm_behind
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.pruning.costs import mac_model, parameter_model
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import budget_for, choose_channels, plan_groups, score_channels
from slimdeploy.toolchain.pruning.selection import Kept
from slimdeploy.toolchain.pruning.surgery import prune_network


def _images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))


def _half(network: GraphNetwork) -> Kept:
    """What a cut to half of the MACs keeps, everything that sums tie together included."""
    macs = network_cost(network.graph, SIZE).macs / 2
    options = PruneOptions(macs=macs, residual="couple", criterion="l2", align=4)
    groups = plan_groups(network.graph, options)
    scores = score_channels(network, None, options)
    return choose_channels(network.graph, scores, options, budget_for(network.graph, groups, options, SIZE))


@torch.no_grad()
def _silenced(network: GraphNetwork, kept: Kept, *, constants: bool) -> GraphNetwork:
    """A copy with γ (where no BN follows, the filter) of the removed channels at zero; unless `constants` may
    stay, β, bias and position embeddings too.
    """
    masks = keep_masks(network.graph, channel_groups(network.graph, residual="couple"), kept)
    silenced = copy.deepcopy(network)
    for node in network.graph.nodes:
        removed = torch.from_numpy(~masks[node.name])
        makes = node.op.reads_all(node) and batchnorm_behind(network.graph, node) is None
        if makes or node.operator == "batchnorm":
            tensors = silenced.tensors(node.name)
            tensors["weight"][removed] = 0
            if "bias" in tensors and not constants:
                tensors["bias"][removed] = 0
        elif node.operator == "plus_image" and not constants:
            silenced.tensors(node.name)[""][0, removed] = 0
    return silenced


def _assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert expected.std() > 1e-4, "logits that are all alike would prove nothing"
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_removing_equals_masking(name: str) -> None:
    network = family(name)
    groups, kept = channel_groups(network.graph, residual="couple"), _half(network)
    pruned, _ = prune_network(network, groups, kept, fold=False)
    assert parameter_count(pruned.graph) < parameter_count(network.graph)
    _assert_same(pruned(_images()), _silenced(network, kept, constants=False)(_images()))


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet", "resnext", "convnext"])
@torch.no_grad()
def test_constants_fold_exactly_through_any_activation(name: str) -> None:
    """Where no layer that reads them pads its input: else the border differs. Gates aren't constant."""
    network = family(name)
    groups, kept = channel_groups(network.graph, residual="couple"), _half(network)
    for group in groups:
        readers = [network.graph.by_name[reader] for reader in group.consumers]
        gated = any(network.graph.by_name[v].operator == "multiply" for v in group.positions)
        if gated or group.residual or any(r.attributes.get("padding", [0, 0]) != [0, 0] for r in readers):
            kept[group.name] = np.arange(group.width)
    pruned, folding = prune_network(network, groups, kept)
    assert folding.exact
    assert folding.channels
    _assert_same(pruned(_images()), _silenced(network, kept, constants=True)(_images()))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_folding_names_what_is_not_exact(name: str) -> None:
    network = family(name)
    groups, half = channel_groups(network.graph, residual="couple"), _half(network)
    for group in groups:
        kept = {g.name: half[g.name] if g is group else np.arange(g.width) for g in groups}
        pruned, folding = prune_network(network, groups, kept)
        found, expected = pruned(_images()), _silenced(network, kept, constants=True)(_images())
        same = torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
        assert same == (not folding.approximate and not folding.lost), group.name


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_pruned_network_is_the_same_in_onnx_and_from_its_description(name: str) -> None:
    network = family(name)
    pruned, _ = prune_network(network, channel_groups(network.graph, residual="couple"), _half(network))
    assert Graph.from_json(json.loads(json.dumps(pruned.graph.to_json()))) == pruned.graph
    info = ModelInfo(pruned.graph, Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3), tuple("abcde"[:CLASSES]))
    model = build_onnx(pruned.eval(), info).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": _images(3).numpy()})
    _assert_same(torch.from_numpy(found), pruned(_images(3)), tolerance=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_budgets_count_what_the_network_costs(name: str) -> None:
    network = family(name)
    groups, kept = channel_groups(network.graph, residual="couple"), _half(network)
    pruned, _ = prune_network(network, groups, kept, fold=False)
    cost, widths = network_cost(pruned.graph, SIZE, alignment=1), {n: len(own) for n, own in kept.items()}
    assert mac_model(network.graph, groups, SIZE).total(widths) == cost.macs == cost.padded_macs
    assert parameter_model(network.graph, groups, SIZE).total(widths) == cost.params


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_trains(name: str) -> None:
    network = copy.deepcopy(family(name)).train()
    network(_images(4)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_gamma_leaves_what_has_no_batchnorm() -> None:
    """The squeeze of a gate has no BN: with --criterion gamma it stays, with l2 it goes."""
    graph = family("efficientnet").graph
    options = PruneOptions(ratio=0.5, residual="couple", align=1, min_channels=1)
    scored = score_channels(family("efficientnet"), None, options)
    left_out = {group.name for group in plan_groups(graph, options)} - set(scored)
    assert left_out
    assert all("fc1" in name for name in left_out)


def test_whole_groups_go() -> None:
    network = family("resnext")
    groups = channel_groups(network.graph)
    (first,) = (group for group in groups if "layer1.0.conv1" in group.producers)
    assert (first.width, first.producers) == (8, ("layer1.0.conv1", "layer1.0.conv2"))
    pruned, _ = prune_network(
        network, groups, {g.name: np.arange(g.width) for g in groups} | {first.name: [0, 5, 7]}
    )
    conv = pruned.graph.by_name["layer1.0.conv2"].attributes
    assert (conv["groups"], conv["in"], conv["out"]) == (3, 12, 12)
