from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.latency.networks import build_noise
from slimdeploy.toolchain.latency.profile import (
    OTHER,
    end_profile,
    layer_of,
    layer_times,
    profiling_session,
    sum_by_layer,
)
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.importing import from_module
from slimdeploy.toolchain.networks.layers import convolutions, layer_of_nodes
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.preprocessing import Preprocessing


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("conv1", "conv1"),
        ("relu", "conv1"),
        ("layer1.0.relu2", "layer1.0.conv2"),
        ("layer1.0.conv3", "layer1.0.conv3"),
        ("layer2.0.downsample.0", "layer2.0.downsample.0"),
        ("fc", "fc"),
        ("layer1.0.add", "layer1.0.conv3"),
        ("layer1.0.relu", "layer1.0.conv3"),
        ("maxpool", OTHER),
        ("ReorderOutput", OTHER),
        ("layer1.0.conv1_token_7", "layer1.0.conv1"),
        ("layer1.0.relu.out_nchwc", "layer1.0.conv3"),
        ("layer1.0.relu/QuickGeluFusion/", "layer1.0.conv3"),
        ("layer1.0.conv3.out.dq.unfolded/duplicated_token_1", "layer1.0.conv3"),
    ],
)
def test_nodes_belong_to_layers(node, layer):
    assert layer_of(node, layer_of_nodes(build_graph("resnet50"))) == layer


def test_a_layer_takes_the_sum_of_its_nodes_medians_in_ms():
    def event(name, microseconds):
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds}

    events = [
        {"cat": "Session", "name": "model_run", "dur": 9999},
        event("conv1.out_nchwc", 9000), event("relu", 500), event("maxpool", 7),  # the first run warms up
        event("conv1.out_nchwc", 1000), event("relu", 100), event("maxpool", 7),
        event("conv1.out_nchwc", 3000), event("relu", 100), event("maxpool", 7),
        event("conv1.out_nchwc", 1100), event("relu", 100), event("maxpool", 7),
    ]  # fmt: skip
    assert sum_by_layer(events, build_graph("resnet50"), skip=1) == pytest.approx(
        {"conv1": 1.2, OTHER: 0.007}
    )


def test_nodes_that_differ_only_in_their_token_are_added():
    names = ("Transpose_token_1", "Transpose_token_12")
    events = [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds}
        for microseconds in (900, 10, 10, 10)  # the first run warms up
        for name in names
    ]
    assert sum_by_layer(events, build_graph("resnet50"), skip=1) == pytest.approx({OTHER: 0.02})


def test_a_layer_may_have_any_name() -> None:
    parts = {"other": nn.Conv2d(3, 4, 3), "rest": nn.AdaptiveAvgPool2d(1), "end": nn.Flatten()}
    module = nn.Sequential(OrderedDict(parts))
    graph = from_module(module, size=8).network.graph
    names = {"other.out_nchwc": 3000, "rest": 1000}
    events = [{"cat": "Node", "name": f"{name}_kernel_time", "dur": dur} for name, dur in names.items()]
    assert sum_by_layer(events, graph) == {"other": 3.0, OTHER: 1.0}


def test_every_convolution_of_an_exported_network_is_found(tmp_path):
    """Whatever onnxruntime fuses and renames, each convolution must still be one entry."""
    spec = build_graph("resnet50")
    info = ModelInfo(spec, Preprocessing(16, (0.5,) * 3, (0.5,) * 3), tuple("abcdefghij"))
    onnx.save(build_onnx(build_network(spec, seed=0).eval(), info), tmp_path / "m.onnx")
    times = layer_times(tmp_path / "m.onnx", spec, batch=1, threads=1)
    names = {conv.name for conv in convolutions(spec, 16)}
    assert set(times) >= names | {"fc"}
    assert min(times.values()) > 0


def test_a_linear_layer_is_found_with_the_relu_that_onnxruntime_fuses_into_it(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 2))
    network = from_module(module, size=8).network
    info = ModelInfo(network.graph, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), ("a", "b"))
    onnx.save(build_onnx(network.eval(), info), tmp_path / "m.onnx")
    assert {"0", "2", "4"} <= set(layer_times(tmp_path / "m.onnx", network.graph, batch=1, threads=1))


class _Names(nn.Module):
    """Names as onnxruntime gives them to its own nodes, and of a network that reads another's start."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3), activation
        self.conv_nchwc, self.fused = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.fc1, self.fc1_token_1, self.fc = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv, self.conv_nchwc, self.fused):
            x = self.act(conv(x))
        x = x.mean((2, 3))
        return self.fc(self.act(self.fc1_token_1(self.act(self.fc1(x)))))


LAYERS = {"conv", "conv_nchwc", "fused", "fc1", "fc1_token_1", "fc"}
NOT_OF_A_LAYER = {
    "Flatten", "GlobalAveragePool", "Pad", "QLinearGlobalAveragePool", "ReorderInput", "ReorderOutput",
    "Reshape", "Transpose",
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.LeakyReLU(), nn.Hardswish(), nn.Sigmoid(), nn.SiLU(), nn.GELU(), nn.GELU("tanh")],
    ids=str,
)
def test_activations_belong_to_their_layers_whatever_onnxruntime_makes_of_them(
    tmp_path: Path, activation: nn.Module, precision: str
) -> None:
    graph = from_module(_Names(activation), size=8).network.graph
    session = profiling_session(build_noise(graph, 8, precision, target="cpu"), tmp_path, threads=1)
    session.run(None, {"images": np.zeros((1, 3, 8, 8), np.float32)})
    nodes = [event for event in end_profile(session) if event["cat"] == "Node"]
    found = sum_by_layer(
        [event | {"dur": 1000 * (event["args"]["op_name"] not in NOT_OF_A_LAYER)} for event in nodes], graph
    )
    elsewhere = found.pop(OTHER)
    assert set(found) == LAYERS
    assert min(found.values()) > 0
    assert elsewhere <= (precision == "int8"), "the images are quantised before the first layer"


def test_what_follows_a_layer_belongs_to_it() -> None:
    """onnxruntime names a fused convolution after the last node."""
    layer = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(), nn.ReLU(), nn.BatchNorm2d(4))
    ends = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    graph = from_module(nn.Sequential(layer, ends), size=8).network.graph
    assert layer_of_nodes(graph) == {"1.2": "1.2"} | {f"0.{place}": "0.0" for place in range(5)}


def test_a_convolution_is_found_with_the_dropout_before_its_relu(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout2d(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    network = from_module(module, size=8).network
    info = ModelInfo(network.graph, Preprocessing(8, (0.5,) * 3, (0.5,) * 3), ("a", "b"))
    onnx.save(build_onnx(network.eval(), info), tmp_path / "m.onnx")
    assert "0" in layer_times(tmp_path / "m.onnx", network.graph, batch=1, threads=1)
