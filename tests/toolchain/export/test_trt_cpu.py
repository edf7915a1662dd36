from __future__ import annotations

import importlib.util

import onnx
import pytest
from onnx import TensorProto, helper

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export import trt_cpu


@pytest.fixture
def relu(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu")],
        "one-relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3, 8, 8])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


def test_parses_and_builds_without_a_gpu(trt_builder, relu):
    built = trt_builder(relu)
    assert built.types == {"relu": ("FLOAT",)}
    assert built.plan_bytes > 0


def test_what_the_parser_refuses_fails(trt_builder, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(AssertionError, match=r"[Pp]arse"):
        trt_builder(tmp_path / "broken.onnx")


def test_missing_wheels_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SlimdeployError, match=r"pip install tensorrt-cu13-bindings==11\.4"):
        trt_cpu.load()


@pytest.mark.usefixtures("tensorrt_cpu")  # skips where the wheels are missing
def test_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlimdeployError, match="no C compiler"):
        trt_cpu.load(tmp_path / "stubs")
