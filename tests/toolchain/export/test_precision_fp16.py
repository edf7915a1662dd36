from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.precision import LIMIT, overflowing_layers, to_fp16


def chain(opset=19):
    """x → a = 10·x → b = a ÷ 5 (as two 1×1 convolutions) → ReLU → y."""
    weights = {"ten": np.full((1, 1, 1, 1), 10), "fifth": np.full((1, 1, 1, 1), 0.2)}
    nodes = [
        helper.make_node("Conv", ["x", "ten"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "fifth"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["y"], name="last"),
    ]
    shape = ["batch", 1, 2, 2]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32(w), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def types(model):
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: TensorProto.DataType.Name(v.type.tensor_type.elem_type)
            for v in (*graph.input, *graph.value_info, *graph.output)}  # fmt: skip


def compute(model, x):
    """In real FP16: onnxruntime's CPU provider computes FP16 models in float32 and would hide an overflow."""
    with np.errstate(over="ignore"):
        return onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]


def test_everything_but_the_ends_is_half():
    half = to_fp16(chain())
    onnx.checker.check_model(half, full_check=True)
    found = types(half)
    assert (found["x"], found["y"]) == ("FLOAT", "FLOAT")
    assert (found["a"], found["b"], found["y.fp16"]) == ("FLOAT16",) * 3
    assert {c.data_type for c in half.graph.initializer} == {TensorProto.FLOAT16}
    assert [n.op_type for n in half.graph.node] == ["Cast", "Conv", "Conv", "Relu", "Cast"]
    x = np.random.default_rng(0).standard_normal((2, 1, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(compute(half, x), compute(chain(), x), rtol=2e-3)


def test_a_float_layer_stays_float32_between_casts():
    half = to_fp16(chain(), float_layers={"second"})
    onnx.checker.check_model(half, full_check=True)
    found = types(half)
    assert (found["a"], found["b"]) == ("FLOAT16", "FLOAT")
    assert next(c for c in half.graph.initializer if c.name == "fifth").data_type == TensorProto.FLOAT
    x = np.ones((1, 1, 2, 2), np.float32)
    np.testing.assert_allclose(compute(half, x), 2 * x, rtol=2e-3)


def test_all_layers_float_is_the_model_itself():
    same = to_fp16(chain(), float_layers={"first", "second", "last"})
    assert [n.op_type for n in same.graph.node] == ["Conv", "Conv", "Relu"]
    x = np.ones((1, 1, 2, 2), np.float32)
    np.testing.assert_array_equal(compute(same, x), compute(chain(), x))


def test_what_overflows_stays_float32_and_then_fits():
    largest = {"x": 9000.0, "a": 90000.0, "b": 18000.0, "y": 18000.0}
    names = overflowing_layers(chain(), largest)
    assert names == ["first", "second"]  # they write and read `a`
    x = np.full((1, 1, 2, 2), 9000, np.float32)
    assert np.isinf(compute(to_fp16(chain()), x)).all()
    np.testing.assert_allclose(compute(to_fp16(chain(), float_layers=set(names)), x), 18000, rtol=2e-3)


def test_weights_that_overflow():
    model = chain()
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((1, 1, 1, 1), 1e5, np.float32), "ten")
    )
    assert overflowing_layers(model, {}) == ["first"]
    assert LIMIT == 32752


def test_nan_counts_as_beyond():
    assert overflowing_layers(chain(), {"b": float("nan")}) == ["second", "last"]


def test_quantised_models_need_opset_19():
    model = chain(opset=17)
    pair = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], name="d"),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    nodes = [*pair, *model.graph.node]
    nodes[2].input[0] = "d"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with pytest.raises(SlimdeployError, match="needs opset 19, the model has 17"):
        to_fp16(model)
