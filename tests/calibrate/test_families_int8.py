"""Any CNN in INT8: both forms run, compute nearly the same, and leave no convolution in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from families import CLASSES, FAMILIES, SIZE, family
from torch import nn

from slimdeploy.calibrate.classifier import classifier
from slimdeploy.calibrate.collect import collect, collect_widths
from slimdeploy.calibrate.equalisation import equalise, tensors_to_equalise
from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.calibrate.qdq import quantised_layers
from slimdeploy.calibrate.quantiser import Quantiser
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.export.precision import to_fp16
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.preprocessing import Preprocessing


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("name", FAMILIES)
def test_int8_of_any_family(name: str, target: str) -> None:
    network = family(name).eval()
    model, made, batch = _quantised(network, target)
    weighted = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert quantised_layers(made) == weighted
    assert _error(_run(made, batch), network, batch) < 0.15


class _SumOfPooled(nn.Module):
    """Adds one value per channel, from a 1×1 convolution of the pooled image, to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.pooled = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pixels(x) + self.pooled(x.mean((2, 3), keepdim=True))


class _PooledConcat(nn.Module):
    """A block of GoogLeNet: a pooling and convolutions read what others joined."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.pooled, self.last = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 8, 1)
        self.pool = nn.MaxPool2d(3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.first(x).relu(), self.second(x).relu()], 1)
        return torch.cat([self.pooled(self.pool(x)).relu(), self.last(x).relu()], 1)


def _classifier(*layers: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


RARE: dict[str, Callable[[], nn.Module]] = {
    "depthwise on the image": lambda: _classifier(
        nn.Conv2d(3, 12, 3, 2, 1, groups=3), nn.ReLU(), nn.Conv2d(12, 16, 1), nn.ReLU(), channels=16
    ),
    "sum of an image and one value per channel": lambda: _classifier(
        nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), _SumOfPooled(), nn.ReLU(), nn.Conv2d(16, 16, 1), channels=16
    ),
    "a pooling behind a concat": lambda: _classifier(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), _PooledConcat(), nn.Conv2d(16, 16, 1), channels=16
    ),
    "windows beyond the border": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AvgPool2d(2, 3, 1, ceil_mode=True),
        nn.Flatten(), nn.Linear(8 * 6 * 6, CLASSES),
    ),
}  # fmt: skip


def test_a_pooling_behind_a_concat_is_computed_with_integers(tmp_path: Path) -> None:
    """Otherwise it and the Concat are computed in float, between conversions."""
    network = _rare("a pooling behind a concat")
    _, made, _ = _quantised(network, "cpu")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert not {"MaxPool", "Concat", "Conv"}.intersection(operators)
    assert operators.count("QLinearConcat") == 2


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("name", RARE)
def test_int8_of_rare_layers(name: str, target: str) -> None:
    network = _rare(name)
    _, made, batch = _quantised(network, target)
    assert _error(_run(made, batch), network, batch) < 0.05


@pytest.mark.parametrize("name", [*FAMILIES, *RARE])
def test_nvidia_s_parser_and_builder_accept(
    name: str, trt_builder: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Among others Pad with pixels, Reshape to six dimensions, Gelu, Expand, a convolution along channels,
    and pooling with ceil_mode as a Pad and a pool.
    """
    network = family(name).eval() if name in FAMILIES else _rare(name)
    model, made, _ = _quantised(network, "tensorrt", opset=20)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    for kind, file in (("fp32", model), ("fp16", to_fp16(model)), ("int8", made)):
        onnx.save(file, tmp_path / f"{kind}.onnx")
        built = trt_builder(tmp_path / f"{kind}.onnx")
        assert {built.fed_by[name] == "DEQUANTIZE" for name in convolutions} == {kind == "int8"}
        wanted = ("HALF",) if kind == "fp16" else ("FLOAT",)
        assert {built.types[name] for name in convolutions} == {wanted}, kind


def _rare(name: str) -> GraphNetwork:
    torch.manual_seed(0)
    return from_module(RARE[name]().eval(), size=SIZE, arch="rare").network


def _quantised(
    network: GraphNetwork, target: str, *, opset: int = 17
) -> tuple[onnx.ModelProto, onnx.ModelProto, np.ndarray]:
    """The network as ONNX, in INT8, and the images that it was calibrated on."""
    info = ModelInfo(network.graph, Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3), tuple("abcde"[:CLASSES]))
    model = build_onnx(network, info, opset=opset)
    batch = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)).numpy()
    source = classifier(model, source="it")
    even = equalise(source, collect_widths(source, tensors_to_equalise(source), [batch]))
    quantiser = Quantiser(even, collect(even, [batch]), CalibrateOptions(target=target))
    return model, quantiser.model("minmax", frozenset()), batch


def _run(model: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": batch})[0]


def _error(found: np.ndarray, network: GraphNetwork, batch: np.ndarray) -> float:
    """RMS of the logit differences, relative to the logits."""
    with torch.no_grad():
        expected = network(torch.from_numpy(batch)).numpy()
    return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))
