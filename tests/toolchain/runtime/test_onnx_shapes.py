"""What an ONNX file is checked for before any runtime sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from families import CLASSES, FAMILIES, SIZE, family
from onnx import TensorProto, helper, numpy_helper

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import METADATA_KEY, ModelInfo
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.onnx_file import parse_onnx, read_onnx
from slimdeploy.toolchain.runtime.onnx_graph import Graph, read_graph
from slimdeploy.toolchain.runtime.onnx_shapes import activation_shapes
from slimdeploy.toolchain.runtime.protobuf import Message

Change = Callable[[onnx.ModelProto], object]


def inferred(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes by ONNX's own inference, the batch as 1."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    copy.graph.output[0].type.tensor_type.shape.dim[0].Clear()
    graph = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True).graph
    constants = {c.name for c in graph.initializer}
    values = [v for v in (*graph.input, *graph.value_info, *graph.output) if v.name not in constants]
    return {v.name: tuple(d.dim_value or 1 for d in v.type.tensor_type.shape.dim) for v in values}


def graph_of(model: onnx.ModelProto) -> Graph:
    content = model.graph.SerializeToString()
    return read_graph(Message(content, 0, len(content)))


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_shapes_are_those_of_onnx(kind: str, models: dict[str, Path]) -> None:
    model = onnx.load(models[kind])
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    assert activation_shapes(graph_of(model), (1, 3, size, size)) == inferred(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_of_any_family_are_those_of_onnx(name: str) -> None:
    network = family(name)
    info = ModelInfo(network.graph, Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3), tuple("abcde"[:CLASSES]))
    model = build_onnx(network, info)
    assert activation_shapes(graph_of(model), (1, 3, SIZE, SIZE)) == inferred(model)


def test_shapes_of_every_kind_of_operator_are_those_of_onnx() -> None:
    """What architectures beyond ResNet are made of: grouped and dilated convolutions, splits, attention."""
    nodes, constants = [], []

    def constant(name: str, values: object) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(operator: str, inputs: list[str], outputs: str = "", **attributes: object) -> str:
        names = outputs.split() or [f"t{len(nodes)}"]
        nodes.append(helper.make_node(operator, inputs, names, name=names[0], **attributes))
        return names[0]

    weight = constant("grouped", np.ones((12, 1, 3, 5), np.float32))
    x = node("Conv", ["images", weight], group=3, kernel_shape=[3, 5], pads=[1, 2, 0, 3], strides=[2, 1],
             dilations=[1, 2])  # fmt: skip
    x = node("Clip", [x, constant("low", np.float32(0)), constant("high", np.float32(6))])
    x = node("HardSwish", [x])
    gate = node("HardSigmoid", [node("GlobalAveragePool", [x])])
    x = node("Mul", [x, gate])
    x = node("AveragePool", [x], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1, 1, 1, 1])
    node("Split", [x, constant("parts", np.array([4, 8]))], "left right", axis=1)
    x = node("Concat", ["right", "left", "left"], axis=1)
    x = node("Slice", [x, constant("from", np.array([1])), constant("to", np.array([2**31])),
                       constant("axis", np.array([1])), constant("step", np.array([2]))])  # fmt: skip
    x = node("Reshape", [x, constant("rows", np.array([0, 8, -1]))])
    x = node("Transpose", [x], perm=[0, 2, 1])
    scale, shift = constant("scale", np.ones(8, np.float32)), constant("shift", np.zeros(8, np.float32))
    x = node("LayerNormalization", [x, scale, shift], axis=-1)
    x = node("MatMul", [x, constant("wide", np.ones((8, 16), np.float32))])
    x = node(
        "Softmax", [node("Gelu", [node("Add", [x, constant("bias", np.ones(16, np.float32))])])], axis=-1
    )
    x = node("ReduceMean", [x, constant("axes", np.array([1]))], keepdims=0)
    last = constant("last", np.ones((5, 16), np.float32))
    node("Gemm", [node("Sigmoid", [x]), last], "logits", transB=1)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 20, 24])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])], constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.checker.check_model(model)
    assert activation_shapes(graph_of(model), (1, 3, 20, 24)) == inferred(model)


def _conv(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "Conv" and node.name != "conv1")


def _attribute(name: str, values: list[int]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        node = _conv(model)
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, values)])

    return change


def _loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "body", [], [])
    model.graph.node.insert(0, helper.make_node("Loop", ["n", "", "images"], ["x"], name="loop", body=body))


def _doubling(model: onnx.ModelProto) -> None:
    name = model.graph.node[0].input[0]
    for i in range(36):
        model.graph.node.insert(i, helper.make_node("Concat", [name, name], [f"d{i}"], axis=1, name=f"d{i}"))
        name = f"d{i}"


def _described(key: str, value: object) -> Change:
    """Another value in the description that the file carries."""

    def change(model: onnx.ModelProto) -> None:
        entry = next(e for e in model.metadata_props if e.key == METADATA_KEY)
        document = json.loads(entry.value)
        document["preprocessing"][key] = value
        entry.value = json.dumps(document)

    return change


def _dims(model: onnx.ModelProto, shape: list[int]) -> None:
    weight = model.graph.initializer[0]
    del weight.dims[:]
    weight.dims.extend(shape)


def _first_weight(model: onnx.ModelProto, value: float) -> None:
    weight = model.graph.initializer[0]
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] = value
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


HOSTILE: dict[str, tuple[Change, str]] = {
    "a loop": (_loop, "the operator 'Loop', which slimdeploy doesn't write"),
    "an operator that fills memory": (
        lambda m: m.graph.node.insert(0, helper.make_node("ConstantOfShape", ["s"], ["x"])),
        "the operator 'ConstantOfShape', which slimdeploy doesn't write",
    ),
    "another domain": (
        lambda m: setattr(m.graph.node[0], "domain", "com.microsoft"), "which slimdeploy doesn't write",
    ),
    "a function": (lambda m: m.functions.add(name="f"), "functions or training steps"),
    "36 doublings": (_doubling, "values for an image; maximum 4194304"),
    "huge padding": (_attribute("pads", [10**6] * 4), "can't compute"),
    "a stride of 0": (_attribute("strides", [0, 0]), "can't compute"),
    "negative dilations": (_attribute("dilations", [-1, -1]), "can't compute"),
    "another kernel": (_attribute("kernel_shape", [7, 7]), "can't compute"),
    "huge images": (_described("size", 100_000), "4096 pixels, not 100000"),
    "images of another size": (_described("size", 17), "its description says 3×17×17"),
    "NaN in the preprocessing": (_described("mean", [0.5, float("nan"), 0.5]), "damaged description"),
    "a std of 0": (_described("std", [0.5, 0.0, 0.5]), "std must be above 0"),
    "a shape beyond the weights": (lambda m: _dims(m, [2**40, 2**40]), "does not have the size of its shape"),
    "a negative shape": (lambda m: _dims(m, [-4, -4]), "has an invalid shape"),
    "NaN in a weight": (lambda m: _first_weight(m, float("nan")), "contains NaN or infinity"),
    "an input that isn't there": (
        lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"), "reads 'nowhere', which doesn't exist",
    ),
    "another precision": (
        lambda m: next(e for e in m.metadata_props if e.key == "precision").__setattr__("value", "int9"),
        "precision 'int9'; known: fp32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_runtime_should_see_is_refused(what: str, models: dict[str, Path]) -> None:
    change, said = HOSTILE[what]
    model = onnx.load(models["fp32"])
    change(model)
    with pytest.raises(SlimdeployError) as refused:
        parse_onnx(model.SerializeToString(), source="m.onnx")
    assert str(refused.value).startswith("m.onnx")
    assert said in str(refused.value)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_files_of_others_may_have_other_operators(models: dict[str, Path]) -> None:
    """`bench` measures them; nothing else takes a file without slimdeploy's description."""
    model = onnx.load(models["fp32"])
    _loop(model)
    del model.metadata_props[:]
    assert parse_onnx(model.SerializeToString(), source="m.onnx").largest == 0


def test_one_flipped_bit_is_noticed_by_the_sidecar(models: dict[str, Path], tmp_path: Path) -> None:
    content = bytearray(models["fp32"].read_bytes())
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    artifacts.write_sidecar(path, {})
    read_onnx(path)
    weight = max(onnx.load(path).graph.initializer, key=lambda c: len(c.raw_data)).raw_data
    content[content.find(weight) + 3] ^= 1 << 5  # an exponent bit: the weight shrinks to almost nothing
    path.write_bytes(content)
    with pytest.raises(SlimdeployError, match=r"m\.onnx is damaged or was replaced: its SHA-256 "):
        read_onnx(path)
