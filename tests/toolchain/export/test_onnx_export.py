"""The ONNX file: what it holds, what it computes, and what happens where it computes something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from strategies import network_specs
from tiny import PREPROCESSING, model_info, random_images, random_network, random_split, write_checkpoint
from torch import nn

from slimdeploy.toolchain.artifacts import sha256_file
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.errors import CheckFailed, SlimdeployError
from slimdeploy.toolchain.export.onnx import build_onnx, folded_parameters
from slimdeploy.toolchain.export.options import OPSETS, ExportOptions
from slimdeploy.toolchain.export.parity import compare, normalised
from slimdeploy.toolchain.library.export import _check
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.graph import Graph, Node
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session
from slimdeploy.toolchain.stages.export import export_stage

ALLOWED = {"Conv", "Relu", "MaxPool", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
# The IR version that came with the ONNX release of each opset (onnx/docs/Versioning.md).
IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}


def _run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@settings(max_examples=20)
@given(network_specs())
def test_any_network_becomes_allowed_operators_that_compute_the_same(spec: Graph) -> None:
    network = random_network(spec)
    model = build_onnx(network, model_info(spec))
    onnx.checker.check_model(model, full_check=True)
    assert {node.op_type for node in model.graph.node} <= ALLOWED
    for count in (1, 3):  # the batch is dynamic
        images = random_images(count).numpy()
        with torch.no_grad():
            expected = network(torch.from_numpy(images)).numpy()
        tolerance = 1e-5 * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(_run(model, images), expected, atol=10 * tolerance)


def test_resnet50_is_all_there() -> None:
    spec = build_graph("resnet50")
    model = build_onnx(random_network(spec), model_info(spec))
    names = {}
    for node in model.graph.node:
        names.setdefault(node.op_type, []).append(node.name)
    assert {kind: len(found) for kind, found in names.items()} == {
        "Conv": 53, "Relu": 49, "MaxPool": 1, "Add": 16, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    modules = {name for name, m in random_network(spec).named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert set(names["Conv"]) == modules, "nodes carry the names of the modules"
    assert {i.name for i in model.graph.initializer} == {
        f"{name}.{part}" for name in (*modules, "fc") for part in ("weight", "bias")
    }
    (image,), (logits,) = model.graph.input, model.graph.output
    shape = [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim]
    assert (image.name, shape) == ("images", ["batch", 3, 16, 16])
    shape = [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim]
    assert (logits.name, shape) == ("logits", ["batch", 10])
    assert not any(i.external_data for i in model.graph.initializer)


@pytest.mark.parametrize("opset", IR_VERSIONS)
def test_every_opset_with_its_lowest_ir_version(opset: int) -> None:
    spec = build_graph("tiny", classes=3)
    network = random_network(spec)
    model = build_onnx(network, model_info(spec), opset=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert model.ir_version == IR_VERSIONS[opset]
    images = random_images(2).numpy()
    np.testing.assert_allclose(
        _run(model, images), _run(build_onnx(network, model_info(spec)), images), atol=1e-6
    )


def test_the_range_of_opsets() -> None:
    assert (min(IR_VERSIONS), max(IR_VERSIONS)) == OPSETS
    assert ExportOptions().opset >= 19
    for opset, allowed in ((12, "at least 13"), (23, "at most 22")):
        with pytest.raises(SlimdeployError, match=f"opset must be {allowed}, not {opset}"):
            ExportOptions(opset=opset)
    with pytest.raises(SlimdeployError, match="parity_images must be at least 1, not 0"):
        ExportOptions(parity_images=0)


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels, as in ConvNeXt."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("layer", "operator", "first"),
    [(nn.Hardswish(), "HardSwish", 14), (_ChannelNorm(4), "LayerNormalization", 17)],
)
def test_operators_that_an_opset_lacks(layer: nn.Module, operator: str, first: int) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = from_module(module.eval(), size=16, arch="it").network
    info = ModelInfo(network.graph, PREPROCESSING, tuple("abcd"))
    message = f": ONNX has {operator} since opset {first}: opset must be at least {first}, not {first - 1}$"
    with pytest.raises(SlimdeployError, match=message):
        build_onnx(network, info, opset=first - 1)
    build_onnx(network, info, opset=first)


@pytest.mark.parametrize("opset", [13, 22])
def test_pooling_windows_beyond_the_border(opset: int) -> None:
    torch.manual_seed(0)
    pools = [
        nn.MaxPool2d(2, 2, 1, ceil_mode=True),  # one window less than ONNX's ceil_mode: it starts in padding
        nn.MaxPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d((2, 5), 3, (1, 2), ceil_mode=True, count_include_pad=False),
    ]
    images = torch.randn(2, 3, 17, 17)
    for pool in pools:
        module = nn.Sequential(nn.Conv2d(3, 4, 1), pool, nn.Flatten())
        module.append(nn.Linear(module(images).shape[1], 5)).eval()
        graph = from_module(module, size=17, arch="pools").network
        info = ModelInfo(graph.graph, replace(PREPROCESSING, size=17), tuple("abcde"))
        found = _run(build_onnx(graph, info, opset=opset), images.numpy())
        np.testing.assert_allclose(found, module(images).detach().numpy(), atol=1e-5, err_msg=str(pool))


@torch.no_grad()
def test_folding_by_hand() -> None:
    # (3x − 5) ÷ 4 · 2 + 1; without affine (3x − 5) ÷ 4.
    for affine, expected in (
        (True, (1.5, -1.5)),
        (False, (0.75, -1.25)),
    ):
        sides = {"kernel": [1, 1], "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]}
        conv = Node("conv", "conv", ("images",), {"in": 3, "out": 1, "groups": 1, "bias": False, **sides})
        bn = Node(
            "bn", "batchnorm", ("conv",), {"channels": 1, "eps": 0.0, "momentum": 0.1, "affine": affine}
        )
        pooled = Node("pool", "adaptive_avg_pool", ("bn",), {"size": [1, 1]})
        network = GraphNetwork(
            Graph((conv, bn, pooled, Node("flat", "flatten", ("pool",), {"positions": 1})))
        )
        values = {"weight": 2.0, "bias": 1.0, "running_mean": 5.0, "running_var": 16.0}
        network.weight("conv").fill_(3.0)
        for name, tensor in network.tensors("bn").items():
            if name in values:
                tensor.fill_(values[name])
        found = folded_parameters(network, conv, bn)
        assert (found["weight"][0, 0, 0, 0], found["bias"].item()) == expected


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "net.safetensors")


def _data(folder: Path) -> DataOptions:
    return DataOptions(f"folder:{folder}")


def test_the_file_describes_itself_and_its_sidecar_proves_it(
    checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "net.onnx"
    result = export_stage(
        checkpoint, options=ExportOptions(opset=17), output=output, data=_data(image_folder)
    )
    assert result.parity.images == 24
    assert result.parity.top1_agreement == 1.0
    assert 0 < result.parity.max_abs_error <= 1e-3
    parent = load_checkpoint(checkpoint)
    with open_session(output, options=SessionOptions(device="cpu")) as session:
        info = session.info
    assert info is not None
    assert (info.graph, info.preprocessing, info.class_names) == (
        parent.info.graph, parent.info.preprocessing, parent.info.class_names,
    )  # fmt: skip
    assert info.provenance[-1]["stage"] == "export"
    assert info.provenance[-1]["parent"] == parent.sha256
    described = json.loads((tmp_path / "net.onnx.json").read_text())
    assert described["file"] == "net.onnx"
    assert described["sha256"] == sha256_file(output) == result.sha256
    assert described["parent_sha256"] == parent.sha256
    assert (described["precision"], described["opset"]) == ("fp32", 17)
    assert described["shapes"] == {"images": ["batch", 3, 16, 16]}
    assert described["versions"]["torch"] == torch.__version__
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json", "net.safetensors"]


@pytest.mark.parametrize("existing", [False, True])
def test_past_tolerance_no_file_is_left(
    checkpoint: Path, image_folder: Path, tmp_path: Path, existing: bool
) -> None:
    output = tmp_path / "net.onnx"
    if existing:
        output.write_text("the one before")
    files = sorted(tmp_path.iterdir())
    message = r"net.onnx: the ONNX logits differ by \S+ on 24 images \(1e-12 allowed\); no file written$"
    with pytest.raises(CheckFailed, match=message):
        export_stage(
            checkpoint,
            options=ExportOptions(max_abs_error=1e-12),
            output=output,
            data=_data(image_folder),
            force=True,
        )
    assert sorted(tmp_path.iterdir()) == files
    assert not existing or output.read_text() == "the one before"


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_limit_goes_by_the_size_of_the_logits(tmp_path: Path, scale: float) -> None:
    spec = build_graph("tiny", stem="cifar", classes=3)
    network = random_network(spec)
    with torch.no_grad():
        network.get_submodule("fc").weight.mul_(scale)
        network.get_submodule("fc").bias.mul_(scale)
    batches = list(normalised(random_split(8), PREPROCESSING))
    onnx.save(build_onnx(network, model_info(spec)), tmp_path / "net.onnx")
    same = compare(network, tmp_path / "net.onnx", batches)
    _check(same, ExportOptions(), tmp_path / "net.onnx")
    with torch.no_grad():
        network.get_submodule("fc").bias[1] += 0.001 * same.largest_logit
    with pytest.raises(CheckFailed, match="the ONNX logits differ by"):
        _check(compare(network, tmp_path / "net.onnx", batches), ExportOptions(), tmp_path / "net.onnx")


def test_nan_is_past_every_tolerance(tmp_path: Path) -> None:
    network = random_network(build_graph("tiny", stem="cifar", classes=3))
    onnx.save(build_onnx(network, model_info(network.graph)), tmp_path / "net.onnx")
    with torch.no_grad():
        network.get_submodule("fc").bias[1] = float("nan")
    parity = compare(network, tmp_path / "net.onnx", normalised(random_split(8), PREPROCESSING))
    options = ExportOptions(max_abs_error=1e9, min_agreement=0.0)
    with pytest.raises(CheckFailed, match="the ONNX logits differ by nan"):
        _check(parity, options, tmp_path / "net.safetensors")


def test_parity_sees_a_wrong_file(tmp_path: Path) -> None:
    spec = build_graph("tiny", stem="cifar", classes=3)
    network, other = random_network(spec, 0), random_network(spec, 1)
    onnx.save(build_onnx(other, model_info(spec)), tmp_path / "other.onnx")
    parity = compare(network, tmp_path / "other.onnx", normalised(random_split(130), PREPROCESSING))
    assert parity.images == 130
    assert parity.max_abs_error > 0.1
    assert parity.top1_agreement < 1
    options = ExportOptions(max_abs_error=1e9, min_agreement=1.0)
    with pytest.raises(
        CheckFailed, match=r"ONNX and torch agree on \d+\.\d\d% of 130 images \(100\.00% needed\)"
    ):
        _check(parity, options, tmp_path / "net.safetensors")
    onnx.save(build_onnx(network, model_info(spec)), tmp_path / "same.onnx")
    images = normalised(random_split(130), PREPROCESSING)
    assert compare(network, tmp_path / "same.onnx", images).top1_agreement == 1


def test_the_command_and_its_exit_codes(
    slimdeploy_command: Callable, checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "net.onnx"
    data = ["--data", f"folder:{image_folder}"]
    ran = slimdeploy_command("export", checkpoint, "-o", output, "--json")
    assert (ran.exit_code, ran.error) == (
        2,
        f"{checkpoint} doesn't say what data it was trained on: pass --data",
    )
    ran = slimdeploy_command("export", checkpoint, *data, "--max-abs-error", 1e-12, "-o", output)
    assert ran.exit_code == 1
    assert ran.error.endswith("(1e-12 allowed); no file written")
    ran = slimdeploy_command("export", checkpoint, *data, "--parity-images", 6, "-o", output, "--json")
    assert ran.exit_code == 0, ran.err
    assert (ran.json["onnx"], ran.json["precision"], ran.json["engine"]) == (str(output), "fp32", None)
    assert ran.json["parity"]["images"] == 6
    ran = slimdeploy_command("export", checkpoint, *data, "-o", output)
    assert (ran.exit_code, ran.error) == (
        2,
        f"{output} exists: pass --force to replace it, or another --output",
    )
    assert slimdeploy_command("export", checkpoint, *data, "-o", output, "--force").exit_code == 0
    ran = slimdeploy_command("export", checkpoint, "--opset", 12, *data, "-o", tmp_path / "y.onnx")
    assert (ran.exit_code, ran.error) == (2, "--opset must be at least 13, not 12")


def test_evaluate_agrees_on_both_backends(
    slimdeploy_command: Callable, checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    data = ["--data", f"folder:{image_folder}"]
    slimdeploy_command("export", checkpoint, *data, "-o", tmp_path / "net.onnx")
    torch_ran = slimdeploy_command("evaluate", checkpoint, *data, "--json").json
    onnx_ran = slimdeploy_command("evaluate", tmp_path / "net.onnx", *data, "--json").json
    assert torch_ran["backend"].startswith("torch")
    assert onnx_ran["backend"] == "onnxruntime-cpu"
    assert onnx_ran["accuracy"] == torch_ran["accuracy"]
    assert onnx_ran["loss"] == pytest.approx(torch_ran["loss"], rel=1e-4)
    assert onnx_ran["images"] == torch_ran["images"] == 24
    ran = slimdeploy_command("evaluate", checkpoint, *data, "--backend", "onnxruntime")
    assert (ran.exit_code, ran.error) == (2, f"{checkpoint}: onnxruntime opens .onnx files")


def test_an_onnx_file_of_another_origin_cannot_be_evaluated(
    slimdeploy_command: Callable, tmp_path: Path, image_folder: Path
) -> None:
    spec = build_graph("tiny", classes=3)
    model = build_onnx(random_network(spec), replace(model_info(spec), provenance=()))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "stranger.onnx")
    ran = slimdeploy_command("evaluate", tmp_path / "stranger.onnx", "--data", f"folder:{image_folder}")
    assert ran.exit_code == 2
    assert ran.error == f"{tmp_path / 'stranger.onnx'} contains no preprocessing: export it with slimdeploy"


def test_description_survives_the_file(tmp_path: Path) -> None:
    spec = build_graph("tiny", classes=3)
    info = replace(model_info(spec), class_names=("Straße", "日本", "a,b"))
    onnx.save(build_onnx(random_network(spec), info), tmp_path / "x.onnx")
    carried = {p.key: p.value for p in onnx.load(tmp_path / "x.onnx").metadata_props}
    assert ModelInfo.from_json(carried["slimdeploy"], "x") == info
    assert carried["precision"] == "fp32"
