from __future__ import annotations

import numpy as np
import onnx
import pytest
from calibrate_examples import node, small_model
from onnx import TensorProto, helper, numpy_helper

from slimdeploy.calibrate.classifier import classifier, read_classifier
from slimdeploy.calibrate.inference import Network, batches
from slimdeploy.calibrate.passes import fold_batchnorm, pad_image_channels
from slimdeploy.toolchain.errors import SlimdeployError


def with_batchnorm(bias: bool):
    random = np.random.default_rng(0)
    constants = {
        "w": random.standard_normal((4, 3, 3, 3)), "b": random.standard_normal(4),
        "gamma": [1.0, 0.5, 2.0, 0.0], "beta": [0.1, -0.2, 0.0, 0.3],
        "mean": [0.5, -0.5, 0.0, 1.0], "variance": [1.0, 4.0, 0.25, 1.0],
    }  # fmt: skip
    return small_model(
        node("Conv", ["x", "w", "b"] if bias else ["x", "w"], "conv", kernel_shape=[3, 3]),
        node("BatchNormalization", ["conv", "gamma", "beta", "mean", "variance"], "bn", epsilon=1e-3),
        node("Relu", ["bn"], "relu"),
        node("GlobalAveragePool", ["relu"], "pool"),
        node("Flatten", ["pool"], "y"),
        constants=constants,
    )


@pytest.mark.parametrize("bias", [True, False])
def test_batchnorm_is_folded_into_its_convolution(bias):
    source = classifier(with_batchnorm(bias), source="it")
    folded = fold_batchnorm(source)
    assert [n.op_type for n in folded.nodes] == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]
    images = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(
        Network(folded.model).run(images)[0], Network(source.model).run(images)[0], atol=1e-5
    )


def test_a_batchnorm_by_itself_stays():
    model = small_model(
        node("BatchNormalization", ["x", "one", "zero", "zero", "one"], "bn"),
        node("GlobalAveragePool", ["bn"], "pool"),
        node("Flatten", ["pool"], "y"),
        constants={"one": np.ones(3), "zero": np.zeros(3)},
    )
    assert [n.op_type for n in fold_batchnorm(classifier(model, source="it")).nodes] == [
        "BatchNormalization", "GlobalAveragePool", "Flatten",
    ]  # fmt: skip


def test_padded_image_channels_change_nothing(example):
    padded = pad_image_channels(example.source)
    assert padded.constants["conv1.weight.padded"].shape[1] == 4
    batch = next(batches(example.images[:4], example.data().preprocessing))
    np.testing.assert_allclose(Network(padded.model).run(batch)[0], example.logits[:4], rtol=1e-4, atol=1e-4)
    assert padded.origin("images.padded") == "images"
    assert pad_image_channels(example.source, multiple=3) is example.source


GAP = (node("GlobalAveragePool", ["x"], "pool"), node("Flatten", ["pool"], "y"))


REFUSED = {
    r"doesn't support the operator Softmax \(node s\); supported: Conv": small_model(
        node("Softmax", ["x"], "s"), *GAP
    ),
    "quantised already": small_model(*GAP, node("QuantizeLinear", ["y", "s"], "q"), constants={"s": 1.0}),
    "quantise c: its weights and bias must be constants": small_model(node("Conv", ["x", "x"], "c"), *GAP),
    "quantise s: its bounds must be constants": small_model(node("Clip", ["x", "x"], "s"), *GAP),
    "quantise y: alpha, beta and transA": small_model(
        node("GlobalAveragePool", ["x"], "pool"),
        node("Flatten", ["pool"], "flat"),
        node("Gemm", ["flat", "w"], "y", alpha=2.0),
        constants={"w": np.ones((3, 4))},
    ),
    "names must be unique": small_model(
        node("Relu", ["x"], "a"), helper.make_node("Relu", ["a"], ["b"]), *GAP
    ),
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_what_cannot_be_quantised_is_named(message):
    with pytest.raises(SlimdeployError, match=rf"model\.onnx.*{message}"):
        classifier(REFUSED[message], source="model.onnx")


def test_a_model_that_is_no_classifier_is_refused():
    model = small_model(node("Relu", ["x"], "y"))
    for _ in range(2):
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 8
    with pytest.raises(SlimdeployError, match="not an image classifier"):
        classifier(model, source="it")


def test_a_size_that_is_not_fixed_is_refused():
    model = small_model(*GAP)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(SlimdeployError, match="the image size must be fixed"):
        classifier(model, source="it")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_than_float32_is_refused(kind):
    model = small_model(*GAP)
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(SlimdeployError, match="not float32"):
        classifier(model, source="it")


def test_fp16_weights_are_refused():
    model = with_batchnorm(True)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), "w"))
    with pytest.raises(SlimdeployError, match="FP16 already"):
        classifier(model, source="it")


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(SlimdeployError, match=r"no model at .*none\.onnx"):
        read_classifier(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07 not onnx")
    with pytest.raises(SlimdeployError, match=r"bad\.onnx is not an ONNX file, or is damaged"):
        read_classifier(tmp_path / "bad.onnx")


def test_a_real_model_reads(example, tmp_path):
    read = read_classifier(example.save(tmp_path / "model.onnx"))
    assert read.image_shape == (3, 16, 16)
    assert read.layers()[0] == "conv1"
    assert {"avgpool", "fc"} <= set(read.layers())
    assert read.is_rectified("avgpool.out")
    assert not read.is_rectified("images")
    assert not read.is_rectified("layer2.0.downsample.0.out")
    assert onnx.checker.check_model(read.model) is None
