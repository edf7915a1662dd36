"""Small classifiers: real architectures with the shapes that matter (identity and projection blocks, odd
widths, dead channels), and models of a few nodes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from slimdeploy.calibrate.classifier import Classifier, classifier
from slimdeploy.calibrate.collect import collect
from slimdeploy.calibrate.histogram import Histogram
from slimdeploy.calibrate.inference import Network, batches
from slimdeploy.calibrate.options import CalibrationData
from slimdeploy.toolchain.data.dataset import Split
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import ChannelConfig
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.preprocessing import Preprocessing

SIZE, CLASSES = 16, 5
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CHANNELS = {
    "resnet18": ChannelConfig(8, ((8, 8), (4, 8), (8, 16), (12, 16), (8, 24), (8, 24), (16, 32), (8, 32))),
    # Bottlenecks with odd widths, as pruning without alignment leaves them; one block is removed.
    "resnet50": ChannelConfig(
        7,
        ((5, 3, 16),) + ((3, 7, 16),) * 2 + ((9, 5, 24),) * 4
        + ((6, 11, 32),) * 5 + ((0, 0, 32),) + ((3, 3, 40),) * 3,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A small classifier, images for it, and its own answers as their labels."""

    model: onnx.ModelProto
    source: Classifier
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    @functools.cached_property
    def histograms(self) -> dict[str, Histogram]:
        """Of every activation, on 32 of the images."""
        return collect(self.source, batches(self.images[:32], PREPROCESSING), threads=1)

    def data(self) -> CalibrationData:
        """48 images for each part."""
        parts = [Split(self.images[i : i + 48], self.labels[i : i + 48]) for i in (0, 48, 96)]
        return CalibrationData(*parts, PREPROCESSING)

    def save(self, path: Path) -> Path:
        onnx.save(self.model, path)
        return path


def make_example(arch: str, *, opset: int = 19, stem: str = "cifar") -> Example:
    spec = build_graph(arch, stem=stem, classes=CLASSES, channels=CHANNELS[arch])
    network = build_network(spec, seed=0)
    generator = torch.Generator().manual_seed(0)
    images = np.random.default_rng(0).integers(0, 256, (144, SIZE, SIZE, 3), dtype=np.uint8)
    # Statistics and scales as training would leave them, one channel of each convolution switched off.
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.affine:
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
                module.weight[0] = 0.0
    with torch.no_grad():
        network(torch.from_numpy(images[:64]).permute(0, 3, 1, 2).float() / 64 - 2)
    info = ModelInfo(spec, PREPROCESSING, tuple("abcde"))
    model = build_onnx(network.eval(), info, opset=opset)
    logits = Network(model, threads=1).logits(images, PREPROCESSING)
    return Example(model, classifier(model, source="example"), images, logits.argmax(axis=1), logits)


def small_model(*nodes, constants=(), opset=17):
    """A classifier of 3×8×8 images made of `nodes`, from `x` to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.float32(values), name) for name, values in dict(constants).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs, [output], name=output, **attributes)
