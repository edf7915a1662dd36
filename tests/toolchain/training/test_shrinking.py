"""A network that shrinks while it trains: exactly, resumable across the cut, and later stages know of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from families import family
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import network_specs
from tiny import PREPROCESSING, random_images, random_network
from tiny_runs import OPTIONS, STEPS, Stopped, at_step, run, same, stop, untimed

from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph, channel_numbers
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cutting import pruned_graph
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork, build_network
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.training.distributed import ALONE
from slimdeploy.toolchain.training.learner import Course, Learner
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.removed import removed_from
from slimdeploy.toolchain.training.shrinking import Shrinking, cut_of
from slimdeploy.toolchain.training.sparsity import FixedPenalty, penalised_batchnorms
from slimdeploy.toolchain.training.state import state_path
from slimdeploy.toolchain.training.step import Objective

STEERED = replace(OPTIONS, sparsity="auto:0.4", sparse_align=1, epochs=6)
"""Settled after 4 of 18 steps."""
ALIGNED = TrainOptions(sparsity=1e-2, sparse_align=1, ema=0.9)


def _with_zeros(network: GraphNetwork, layers: str, seed: int, share: float = 0.6) -> dict[str, torch.Tensor]:
    """Set γ of some channels to zero, β of a third of them too; returns where γ is zero."""
    rng, zeros = np.random.default_rng(seed), {}
    for name in penalised_batchnorms(network.graph, layers):
        zero = torch.from_numpy(rng.random(network.graph.channels[name]) < share)
        with torch.no_grad():
            network.weight(name)[zero] = 0
            bias = network.tensors(name)["bias"]
            bias[zero & torch.from_numpy(rng.random(len(bias)) < 1 / 3)] = 0
        zeros[name] = network.weight(name).detach() == 0
    return zeros


def _learner(network: GraphNetwork, options: TrainOptions = ALIGNED) -> Learner:
    objective = Objective(options, None, PREPROCESSING)
    course = Course(
        options, network.graph, objective, steps_per_epoch=9, weight=1.0, device="cpu", ranks=ALONE
    )
    return Learner(network, course)


@torch.no_grad()
def _assert_same(expected: GraphNetwork, found: GraphNetwork, size: int = 16) -> None:
    """In eval mode, and while training, where BN takes the batch's statistics; in float64: the variance of
    four values can be so small that it makes much of a rounding.
    """
    images, networks = random_images(4, size).double(), [copy.deepcopy(n).double() for n in (expected, found)]
    for training in (False, True):
        logits, cut = (network.train(training)(images) for network in networks)
        assert float((logits - cut).abs().max()) <= 1e-6 * max(1.0, float(logits.abs().max())), training


@settings(max_examples=10)
@given(network_specs(), st.integers(0, 2**32 - 1), st.sampled_from(["prunable", "all"]))
def test_what_goes_leaves_the_logits_as_they_are(spec: Graph, seed: int, layers: str) -> None:
    network = random_network(spec, seed % 1000)
    zeros = _with_zeros(network, layers, seed)
    learner = _learner(network, replace(ALIGNED, sparse_layers=layers))
    assert learner.average
    found = cut_of([learner.network, learner.average.network], zeros, learner.course.options, ALONE)
    if found is None:
        return
    cut = learner.without(*found)
    assert cut.average
    assert sum(channel_numbers(cut.network.graph)) < sum(channel_numbers(spec))
    _assert_same(learner.average.network, cut.average.network)
    _assert_same(learner.network, cut.network)


@pytest.mark.parametrize("name", ["vgg_bn", "mobilenet_v3", "densenet", "resnext", "inception", "shufflenet"])
def test_so_do_the_channels_of_other_families(name: str) -> None:
    network = copy.deepcopy(family(name))
    zeros = _with_zeros(network, "prunable", 0)
    learner = _learner(network, replace(ALIGNED, ema=0.0))
    found = cut_of([network], zeros, learner.course.options, ALONE)
    assert found, "something can go"
    cut = learner.without(*found)
    for module in (*network.modules(), *cut.network.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # draws anew for each width
    _assert_same(network, cut.network, 32)


def test_a_constant_moves_where_nothing_is_padded_and_stays_elsewhere() -> None:
    network = random_network(build_graph("tiny", stem="cifar", classes=3))
    padded, plain = "layer1.0.bn1", "layer1.0.bn2"  # read by a 3×3 and by a 1×1 convolution
    zeros = {}
    with torch.no_grad():
        for name in (padded, plain):
            network.weight(name)[:2] = 0
            network.tensors(name)["bias"][:2] = torch.tensor([0.5, -0.5])
            zeros[name] = network.weight(name) == 0
    groups, kept = cut_of([network], zeros, ALIGNED, ALONE) or ([], {})
    removed = {g.name: sorted(set(range(g.width)) - set(kept[g.name].tolist())) for g in groups}
    assert removed["layer1.0.conv1"] == [1], "ReLU makes nothing of -0.5; 0.5 differs at the border"
    own = network.graph.channels[plain]
    assert len(removed["layer1.0.conv2"]) == min(2, own - 3), "at least three stay"


def test_a_constant_that_a_mean_over_the_channels_reads_stays() -> None:
    class WithMean(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
            self.mix, self.fc = torch.nn.Conv2d(9, 8, 1), torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(self.conv(x))
            return self.fc(self.mix(torch.cat([x, x.mean(1, keepdim=True)], 1)).relu().mean((2, 3)))

    network = from_module(WithMean(), size=16).network
    with torch.no_grad():
        network.weight("norm")[2:4] = 0
        network.tensors("norm")["bias"][2:4] = torch.tensor([0.0, 0.5])
    groups, kept = cut_of([network], {"norm": network.weight("norm") == 0}, ALIGNED, ALONE) or ([], {})
    assert kept["conv"].tolist() == [0, 1, 3, 4, 5, 6, 7]
    _assert_same(network, prune_network(network, groups, kept)[0])


def test_momenta_go_with_their_channels() -> None:
    learner = _learner(random_network(build_graph("tiny", stem="cifar", classes=3)))
    learner.take_step(random_images(8), torch.arange(8) % 3, 0)
    zeros = _with_zeros(learner.network, "prunable", 1)
    found = cut_of([learner.network], zeros, replace(ALIGNED, ema=0.0), ALONE)
    assert found
    cut, kept = learner.without(*found), found[1]["layer2.0.conv1"]
    before, after = learner.snapshot(), cut.snapshot()
    assert 0 < len(kept) < len(before.momenta["layer2.0.bn1.weight"])
    for name in ("layer2.0.bn1.weight", "layer2.0.bn1.bias", "layer2.0.conv1.weight"):
        assert torch.equal(after.momenta[name], before.momenta[name][kept]) or "conv1" in name
    weight = after.momenta["layer2.0.conv2.weight"]
    assert torch.equal(weight, before.momenta["layer2.0.conv2.weight"][found[1]["layer2.0.conv2"]][:, kept])
    idle = after.extra["penalty.idle.layer2.0.bn1"]
    assert torch.equal(idle, before.extra["penalty.idle.layer2.0.bn1"][kept])
    assert cut.lr == learner.lr


def test_a_block_goes_whose_branch_adds_nothing() -> None:
    network = random_network(build_graph("tiny-deep", stem="cifar", classes=3))
    with torch.no_grad():
        for part in network.tensors("layer1.1.bn3").values():
            if part.dtype.is_floating_point:
                part.zero_()
    network.tensors("layer1.1.bn3")["running_var"].fill_(1)
    zeros = {"layer1.1.bn3": torch.ones(network.graph.channels["layer1.1.bn3"], dtype=torch.bool)}
    options = replace(ALIGNED, sparse_layers="all", ema=0.0)
    learner = _learner(network, options)
    found = cut_of([network], zeros, options, ALONE)
    assert found
    cut = learner.without(*found)
    assert "layer1.1.conv1" not in cut.network.graph.by_name
    _assert_same(network, cut.network)


def test_a_block_that_has_not_begun_to_add_anything_stays() -> None:
    network = build_network(build_graph("tiny-deep", stem="cifar", classes=3), seed=0)  # starts with γ = 0
    penalty = FixedPenalty(network, 1e-3, layers="all", momentum=0.9, patience=3)
    for number in range(5):
        penalty.after_step(0.1, number)
    assert not any(gone.any() for gone in penalty.gone().values())
    end = network.weight("layer1.1.bn3")
    for value in (1.0, 0.0):
        torch.nn.init.constant_(end, value)
        for number in range(5):
            penalty.after_step(0.1, number)
    assert penalty.gone()["layer1.1.bn3"].all()


@pytest.mark.parametrize("changes", [{}, {"ema": 0.8}], ids=str)
def test_the_training_goes_on_as_it_would_with_the_zeros(tmp_path: Path, changes: dict) -> None:
    options = replace(STEERED, **changes)
    small, history = run(tmp_path / "small", options)
    large, expected = run(tmp_path / "large", replace(options, shrink=False))
    assert sum(channel_numbers(small.graph)) < sum(channel_numbers(large.graph))
    assert history[-1].macs < history[0].macs == expected[-1].macs
    for mine, theirs in zip(history, expected, strict=True):
        assert mine.zero_share == pytest.approx(theirs.zero_share)
        assert mine.train_loss == pytest.approx(theirs.train_loss, abs=1e-3)
        assert mine.val_loss == pytest.approx(theirs.val_loss, abs=1e-3)


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_run_killed_in_or_after_the_epoch_of_the_cut_ends_bit_for_bit_the_same(
    tmp_path: Path, epoch: int
) -> None:
    options = replace(STEERED, ema=0.8)
    expected, history = run(tmp_path / "whole", options)
    assert history[0].macs > history[1].macs == history[-1].macs, "cut in the second epoch"
    with at_step((epoch - 1) * STEPS + 2, stop), pytest.raises(Stopped):
        run(tmp_path / "broken", options)
    resumed, whole = run(tmp_path / "broken", options, resume=True)
    assert same(expected, resumed)
    assert untimed(whole) == untimed(history)


def test_a_fixed_penalty_shrinks_too_and_the_best_epoch_keeps_its_own_widths(tmp_path: Path) -> None:
    options = replace(OPTIONS, sparsity=0.15, sparse_align=1, epochs=10, lr=0.1, patience=10)
    _, history = run(tmp_path / "x", options)
    assert history[-1].macs < history[0].macs
    assert history[-1].zero_share > 0.1
    best = max(range(len(history)), key=lambda i: (history[i].val_accuracy, i))
    assert history[best].val_accuracy > 0.5


def test_too_little_to_be_worth_a_cut_waits() -> None:
    network = build_network(build_graph("tiny", stem="cifar", classes=3), seed=0)
    options = replace(ALIGNED, ema=0.0)
    learner = _learner(network, options)
    with torch.no_grad():
        network.weight("layer1.0.bn2")[:1] = 0
    for _ in range(25):
        learner.penalty.after_step(0.0, 0)
    learner.penalty.penalised.shrink(1e-9)  # type: ignore[attr-defined]
    assert Shrinking(options, 9, 16).after_step(8, learner) is learner


def test_prune_counts_what_training_removed(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    sparse, output = tmp_path / "sparse.safetensors", tmp_path / "pruned.safetensors"
    ran = slimdeploy_command(
        "train", "--arch", "tiny", "--stem", "cifar", "--data", f"folder:{image_folder}", "--epochs", 4,
        "--batch-size", 16, "--sparsity", "auto:0.4", "--sparse-align", 1, "-o", sparse, "--json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.err
    removed = ran.json["removed"]
    assert removed["channels"] == 24
    assert removed["of"] == 60
    assert removed["params"]["after"] < removed["params"]["before"]
    assert load_checkpoint(sparse).info.provenance[-1]["removed"] == removed
    summary = slimdeploy_command("summary", sparse, "--json").json
    assert (summary["params"], summary["macs"]) == (removed["params"]["after"], removed["macs"]["after"])
    ran = slimdeploy_command("prune", sparse, "--ratio", 0.4, "--align", 1, "-o", output)
    assert ran.exit_code == 0, ran.err
    assert "nothing left to prune: training has removed 24 channels already" in ran.err
    assert load_checkpoint(output).info.graph == load_checkpoint(sparse).info.graph
    ran = slimdeploy_command("prune", sparse, "--ratio", 0.5, "--align", 1, "-o", output, "--force", "--json")
    assert ran.json["removed_in_training"] == 24
    assert sum(ran.json["channels"]) == sum(summary["channels"]) - 6
    again = slimdeploy_command("prune", output, "--ratio", 0.0, "-o", tmp_path / "again", "--json")
    assert again.json["removed_in_training"] == 0, "of what was pruned since, ratios count anew"
    assert not state_path(sparse).exists()


def test_without_epochs_nothing_is_removed(tmp_path: Path) -> None:
    """The last γ of each block are zero at first, so that the block adds nothing."""
    network = build_network(build_graph("tiny-deep", stem="cifar", classes=3), seed=0)
    found, history = run(tmp_path / "x", replace(ALIGNED, epochs=0, sparse_layers="all"), network=network)
    assert found.graph == network.graph
    assert not history


def test_the_total_counts_the_same_channels_as_the_removed_ones() -> None:
    before = build_graph("tiny-basic", stem="cifar", classes=3)
    groups = channel_groups(before, residual="couple")
    sums = [g.width for g in groups if g.residual]
    after = pruned_graph(before, groups, {g.name: np.arange(3 if g.residual else g.width) for g in groups})
    found = removed_from(before, after, 16, residual=replace(ALIGNED, sparse_layers="all").sparse_residual)
    assert found.channels == sum(sums) - 3 * len(sums)
    assert found.of == sum(g.width for g in groups)
    inside = removed_from(before, after, 16, residual=ALIGNED.sparse_residual)
    assert inside.of == found.of - sum(sums)
