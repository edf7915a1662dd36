"""NVIDIA's own parser and builder take what is exported, in the precisions that were asked for and no
other.
"""

from __future__ import annotations

import collections

import onnx
import pytest
from calibrate_examples import PREPROCESSING, make_example

from slimdeploy.calibrate.equalisation import equalise
from slimdeploy.calibrate.inference import batches
from slimdeploy.calibrate.measure import measure
from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.calibrate.quantiser import Quantiser
from slimdeploy.toolchain.export.precision import to_fp16

KINDS = {"conv", "fc", "avgpool"}


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def pruned(request):
    """Small networks at odd widths, with a max-pool behind the stem."""
    return make_example(request.param, stem="cifar-pool")


@pytest.fixture
def built(trt_builder, tmp_path):
    def build(model):
        onnx.save(model, tmp_path / "model.onnx")
        return trt_builder(tmp_path / "model.onnx")

    return build


def quantise(example, *float_layers, **options):
    widths, histograms = measure(
        example.source, lambda: batches(example.images[:32], PREPROCESSING), threads=1
    )
    quantiser = Quantiser(equalise(example.source, widths), histograms, CalibrateOptions(**options))
    return quantiser.model("minmax", frozenset(float_layers))


def convolutions(example):
    return [n.name for n in example.source.nodes if n.op_type == "Conv"]


def kinds(network, example):
    """Element types that the network's own layers write."""
    own = {node.name for node in example.source.nodes}
    return collections.Counter(t for name, types in network.types.items() if name in own for t in types)


def test_fp32(built, pruned):
    assert set(kinds(built(pruned.model), pruned)) == {"FLOAT"}


def test_fp16(built, pruned):
    network = built(to_fp16(pruned.model))
    assert set(kinds(network, pruned)) == {"HALF"}


@pytest.mark.parametrize(("compute", "kind"), [("fp32", "FLOAT"), ("fp16", "HALF")])
def test_int8(built, pruned, compute, kind):
    network = built(quantise(pruned, compute=compute))
    for name in (*convolutions(pruned), "avgpool"):
        assert network.fed_by[name] == "DEQUANTIZE", name
    assert set(kinds(network, pruned)) == {kind}
    quantised = {t for types in network.types.values() for t in types} - {"FLOAT", "HALF", "INT64"}
    assert quantised == {"INT8"}


def test_mixed(built, pruned):
    kept = convolutions(pruned)[3:5]
    network = built(quantise(pruned, *kept, compute="fp16"))
    fed = {name: network.fed_by[name] for name in convolutions(pruned)}
    assert {name for name, kind in fed.items() if kind != "DEQUANTIZE"} == set(kept)
    assert set(kinds(network, pruned)) == {"HALF"}


def test_fp16_with_a_layer_that_overflows(built, pruned):
    network = built(to_fp16(pruned.model, float_layers={"layer2.0.conv1"}))
    assert network.types["layer2.0.conv1"] == ("FLOAT",)
    assert network.types["layer2.0.conv2"] == ("HALF",)


def test_float_weights_of_opset_17(built):
    example = make_example("resnet18", opset=17)
    network = built(quantise(example))
    assert all(network.fed_by[name] == "DEQUANTIZE" for name in convolutions(example))


def test_the_form_for_onnxruntime_is_not_for_tensorrt(built, pruned):
    """Which is why there are two: TensorRT has no unsigned INT8."""
    with pytest.raises(AssertionError):
        built(quantise(pruned, target="cpu"))
