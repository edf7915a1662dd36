"""A small network as checkpoint and as ONNX in every precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
CLASSES = ("cat", "dog", "frog", "ship")


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow ResNet-18 for 16×16 images, 4 classes, its BN statistics away from 0 and 1."""
    import torch

    from slimdeploy.toolchain.models.checkpoint import save_checkpoint
    from slimdeploy.toolchain.models.model_info import ModelInfo
    from slimdeploy.toolchain.networks.architectures import build_graph
    from slimdeploy.toolchain.networks.module import build_network
    from slimdeploy.toolchain.preprocessing import Preprocessing

    flat = [8, *[8, 8] * 2, *[8, 16] * 2, *[8, 16] * 2, *[8, 24] * 2]
    network = build_network(build_graph("resnet18", classes=len(CLASSES), channels=flat), seed=0).train()
    with torch.no_grad():
        network(torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    info = ModelInfo(network.graph, Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), CLASSES)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(path, network.eval(), info)
    return path


@pytest.fixture(scope="session")
def small_batch() -> np.ndarray:
    """Nine images for `small_checkpoint`, (9, 3, 16, 16)."""
    return np.random.default_rng(0).standard_normal((9, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="session")
def models(small_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`small_checkpoint` as ONNX: `fp32`, `fp16` and `int8` at opset 17, `opset19`, and `batch2` of a fixed
    batch size.
    """
    from slimdeploy.toolchain.export.onnx import build_onnx
    from slimdeploy.toolchain.models.checkpoint import load_checkpoint

    small = load_checkpoint(small_checkpoint)
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8", "opset19", "batch2")}
    fp32 = build_onnx(small.network, small.info, opset=17)
    onnx.save(fp32, paths["fp32"])
    onnx.save(_halved(fp32), paths["fp16"])
    onnx.save(build_onnx(small.network, small.info, opset=19), paths["opset19"])
    _quantise(paths["fp32"], paths["int8"])
    for value in (fp32.graph.input[0], fp32.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(fp32, paths["batch2"])
    return paths


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with FP16 weights, casts behind its input and before its output."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    for tensor in graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    image, logits = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.input[:] = [f"{image}.half" if name == image else name for name in node.input]
        node.output[:] = [f"{logits}.half" if name == logits else name for name in node.output]
    first = helper.make_node("Cast", [image], [f"{image}.half"], name="in", to=TensorProto.FLOAT16)
    last = helper.make_node("Cast", [f"{logits}.half"], [logits], name="out", to=TensorProto.FLOAT)
    graph.node.insert(0, first)
    graph.node.append(last)
    _set_precision(model, "fp16")
    onnx.checker.check_model(model, full_check=True)
    return model


def _quantise(source: Path, target: Path) -> None:
    """Q/DQ in the form that NVIDIA's parser accepts: symmetric, per channel, no INT32 bias."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            images = np.random.default_rng(2).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)
            self._batches = iter([{"images": images}])

        def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
            return next(self._batches, None)

    quantize_static(
        str(source), str(target), Images(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv", "Gemm"],
        extra_options={
            "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm"],
            "QDQOpTypePerChannelSupportToAxis": {"Conv": 0, "Gemm": 0},
        },
    )  # fmt: skip
    model = onnx.load(target)
    _set_precision(model, "int8")
    onnx.save(model, target)


def _set_precision(model: onnx.ModelProto, precision: str) -> None:
    for entry in model.metadata_props:
        if entry.key == "precision":
            entry.value = precision
