"""Residual streams as groups, removed blocks, and the whole stage over architectures, criteria and modes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import network_specs

from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.checkpoint import load_checkpoint, save_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph, channel_numbers
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.stages.prune import prune_stage

ALLOWED = {"Conv", "Relu", "MaxPool", "Add", "GlobalAveragePool", "Flatten", "Gemm"}


@given(network_specs(), st.integers(0, 2**32))
def test_removing_stream_channels_equals_masking_them(spec: Graph, seed: int) -> None:
    """Masked: whatever writes a removed channel of any group is set to zero behind its BN."""
    network = tiny.random_network(spec, seed % 1000)
    groups = channel_groups(spec, residual="couple")
    rng = np.random.default_rng(seed)
    kept = {g.name: np.sort(rng.permutation(g.width)[: rng.integers(1, g.width + 1)]) for g in groups}
    pruned, _ = prune_network(network, groups, kept, fold=False)
    handles = []
    for group in groups:
        mask = torch.zeros(1, group.width, 1, 1)
        mask[:, kept[group.name]] = 1
        for name in group.batchnorms:
            bn = network.get_submodule(name)
            handles.append(bn.register_forward_hook(lambda _, __, output, mask=mask: output * mask))
    images = tiny.random_images(2)
    with torch.no_grad():
        masked, sliced = network(images), pruned(images)
    for handle in handles:
        handle.remove()
    assert (masked - sliced).abs().max() <= 1e-5 * max(1.0, float(masked.abs().max()))


def test_coupling_frees_every_width() -> None:
    for arch in ("resnet18", "resnet34", "resnet50", "resnet101"):
        graph = build_graph(arch)
        makers = [name for group in channel_groups(graph, residual="couple") for name in group.producers]
        assert sorted(makers) == sorted(node.name for node in graph.nodes if node.operator == "conv")


def test_a_removed_block_is_its_shortcut() -> None:
    network = tiny.random_network(build_graph("tiny-deep", stem="cifar", classes=3))
    groups = channel_groups(network.graph)
    block = {"layer1.1.conv1", "layer1.1.conv2"}
    kept = {g.name: np.arange(0 if g.name in block else g.width) for g in groups}
    pruned, _ = prune_network(network, groups, kept)
    images = tiny.random_images(2)
    with torch.no_grad():
        found = pruned(images)
        network.weight("layer1.1.bn3").zero_()
        network.get_submodule("layer1.1.bn3").bias.zero_()
        assert torch.allclose(found, network(images), atol=1e-5)
    assert not [node.name for node in pruned.graph.nodes if node.name.startswith("layer1.1")]


@settings(max_examples=15)
@given(
    st.sampled_from(["tiny-deep", "tiny-basic"]),
    st.sampled_from(["cifar-pool", "cifar", "imagenet"]),
    st.sampled_from(["gamma", "l1", "l2", "fpgm", "taylor", "surgeon", "random"]),
    st.sampled_from(["keep", "couple"]),
    st.sampled_from([1, 2, 4]),
)
def test_every_combination_prunes_exports_and_survives_saving(
    tmp_path_factory: pytest.TempPathFactory,
    image_folder: Path,
    arch: str,
    stem: str,
    criterion: str,
    residual: str,
    align: int,
) -> None:
    folder = tmp_path_factory.mktemp("prune")
    source = tiny.write_checkpoint(folder / "source.safetensors", arch, stem=stem)
    options = PruneOptions(
        ratio=0.4,
        criterion=criterion,
        residual=residual,
        align=align,
        min_channels=2,
        allow_block_removal=True,
    )
    data = DataOptions(f"folder:{image_folder}")
    written = prune_stage(source, options=options, output=folder / "pruned.safetensors", data=data)
    result = written.result
    assert result.after.params < result.before.params
    assert result.accuracy is not None
    assert {"before", "after", "after_folding", "after_compensation", "after_recalibration", "final"} <= set(
        result.accuracy
    )
    again = load_checkpoint(folder / "pruned.safetensors")
    assert channel_numbers(again.network.graph) == result.channels
    assert save_checkpoint(folder / "copy.safetensors", again.network, again.info) == written.sha256
    model = build_onnx(again.network, again.info)
    assert {node.op_type for node in model.graph.node} <= ALLOWED
    onnx.checker.check_model(model)


def test_steps_reach_the_same_budget(tmp_path: Path, image_folder: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "source.safetensors", "tiny-deep")
    data = DataOptions(f"folder:{image_folder}")
    widths = []
    for steps in (1, 2):
        options = PruneOptions(ratio=0.5, align=1, min_channels=1, steps=steps)
        written = prune_stage(source, options=options, output=tmp_path / f"{steps}.safetensors", data=data)
        pruned = load_checkpoint(written.checkpoint).info.graph
        widths.append(sum(group.width for group in channel_groups(pruned)))
        assert list(tmp_path.glob("*.state")) == []
    assert widths[0] == widths[1]
