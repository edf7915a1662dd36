"""Any CNN in INT8: both forms run, compute nearly the same, and leave no convolution in float."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from families import CLASSES, FAMILIES, SIZE, family

from slimdeploy.calibrate.classifier import classifier
from slimdeploy.calibrate.collect import collect, collect_widths
from slimdeploy.calibrate.equalisation import equalise, tensors_to_equalise
from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.calibrate.qdq import quantised_layers
from slimdeploy.calibrate.quantiser import Quantiser
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.preprocessing import Preprocessing


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
@pytest.mark.parametrize("name", FAMILIES)
def test_int8_of_any_family(name: str, target: str) -> None:
    network = family(name).eval()
    info = ModelInfo(network.graph, Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3), tuple("abcde"[:CLASSES]))
    model = build_onnx(network, info, opset=17)
    images = torch.randn(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    source, batch = classifier(model, source="it"), images.numpy()
    even = equalise(source, collect_widths(source, tensors_to_equalise(source), [batch]))
    quantiser = Quantiser(even, collect(even, [batch]), CalibrateOptions(target=target))
    made = quantiser.model("minmax", frozenset())
    weighted = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert quantised_layers(made) == weighted
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": batch})
    with torch.no_grad():
        expected = network(images).numpy()
    assert np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) < 0.15
