from __future__ import annotations

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from calibrate_examples import PREPROCESSING, Example, make_example, node, small_model
from onnx import numpy_helper

from slimdeploy.calibrate.batch_folding import fold_batch
from slimdeploy.calibrate.classifier import classifier
from slimdeploy.calibrate.inference import Network, batches
from slimdeploy.calibrate.passes import pad_image_channels
from slimdeploy.calibrate.qdq import FORMS, QdqOptions, insert_qdq, quantised_layers
from slimdeploy.calibrate.thresholds import minmax
from slimdeploy.toolchain.export.precision import to_fp16


def quantised(example, target="tensorrt", float_layers=frozenset(), **options):
    histograms = example.histograms
    steps = {t: FORMS[target].steps(rectified=example.source.is_rectified(t)) for t in histograms}
    source = pad_image_channels(example.source) if target == "cpu" else example.source
    limits = {t: minmax(h, steps[t]) for t, h in histograms.items()}
    made = insert_qdq(source, limits, options=QdqOptions(target=target, **options), float_layers=float_layers)
    onnx.checker.check_model(made, full_check=True)
    return made


def constants(model):
    return {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}


def reads_pairs(model, name):
    """For each input of the node `name`, whether a DequantizeLinear writes it."""
    makers = {n.output[0]: n.op_type for n in model.graph.node}
    wanted = next(n for n in model.graph.node if n.name == name)
    return [makers.get(i) == "DequantizeLinear" for i in wanted.input]


def operators(model):
    return collections.Counter(n.op_type for n in model.graph.node)


def logits(model, example):
    return Network(model, threads=1).logits(example.images[:48], PREPROCESSING)


def session(model, level=99, optimised="", **entries):
    """What a user opens who knows nothing of slimdeploy; `entries` are `session.…` settings."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 3, 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel(level)
    settings.optimized_model_filepath = str(optimised)
    for name, value in entries.items():
        settings.add_session_config_entry(f"session.{name}", value)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def run(model, example, **how):
    opened = session(model, **how)
    return np.concatenate(
        [opened.run(None, {"images": batch})[0] for batch in batches(example.images[:48], PREPROCESSING)]
    )


def error(example, found):
    expected = example.logits[:48]
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def test_the_tensorrt_form(bottleneck):
    model = quantised(bottleneck)
    for name in bottleneck.source.layers():
        kind = bottleneck.source.producers[f"{name}.out"].op_type if name != "fc" else "Gemm"
        expected = {"Conv": [True, True, False], "Gemm": [True, True, False], "GlobalAveragePool": [True],
                    "Add": [False, True]}[kind]  # fmt: skip
        assert reads_pairs(model, name) == expected, name
    found = constants(model)
    zeros = [values for name, values in found.items() if name.endswith(".zero")]
    assert all(values.dtype == np.int8 and not values.any() for values in zeros)
    assert found["layer1.0.conv1.weight.scale"].shape == (5,)
    assert found["fc.weight.scale"].shape == (5,)
    assert all(v.shape == () for n, v in found.items() if n.endswith(".out.scale"))


def test_weights_are_per_channel_symmetric(bottleneck):
    found = constants(quantised(bottleneck))
    weight = bottleneck.source.constants["layer2.1.conv2.weight"]
    scale, steps = found["layer2.1.conv2.weight.scale"], found["layer2.1.conv2.weight.q"]
    for channel in range(len(weight)):
        largest = np.abs(weight[channel]).max()
        assert scale[channel] == pytest.approx(largest / 127) if largest else scale[channel] > 0
        assert np.abs(steps[channel]).max() == (127 if largest else 0)
        np.testing.assert_allclose(steps[channel] * scale[channel], weight[channel], atol=scale[channel] / 2)


def test_the_cpu_form_is_unsigned_throughout(bottleneck):
    model = quantised(bottleneck, "cpu")
    found = constants(model)
    zeros = {name: int(values) for name, values in found.items() if name.endswith(".out.zero")}
    assert all(values.dtype == np.uint8 for name, values in found.items() if name.endswith(".out.zero"))
    assert zeros["layer1.0.relu.out.zero"] == 0
    assert zeros["layer1.0.conv3.out.zero"] == zeros["layer1.0.downsample.0.out.zero"] == 128
    assert reads_pairs(model, "layer1.0.add") == [True, True]
    assert reads_pairs(model, "layer1.0.conv1") == [True, True, True]
    assert found["layer1.0.conv1.bias.q"].dtype == np.int32


def test_a_dead_channel_keeps_its_bias_in_int32(bottleneck):
    # γ = 0 leaves weights of 0 and a bias: steps of (activation × weight scale) must still reach the bias.
    found = constants(quantised(bottleneck, "cpu"))
    weight, bias = (bottleneck.source.constants[f"layer1.0.conv2.{part}"] for part in ("weight", "bias"))
    assert not weight[0].any()
    assert bias[0] != 0
    stored = found["layer1.0.conv2.bias.q"] * found["layer1.0.conv2.bias.scale"].astype(np.float64)
    np.testing.assert_allclose(stored, bias, rtol=1e-3, atol=1e-3)


def test_the_step_of_a_bias_is_never_zero():
    tiny = {"w": np.full((4, 3, 1, 1), 1e-30), "b": np.zeros(4)}
    model = small_model(
        node("Conv", ["x", "w", "b"], "conv", kernel_shape=[1, 1]),
        node("GlobalAveragePool", ["conv"], "pool"),
        node("Flatten", ["pool"], "y"),
        constants=tiny,
    )
    source = classifier(model, source="tiny")
    thresholds = dict.fromkeys(source.activations, 1e-30)
    found = constants(insert_qdq(source, thresholds, options=QdqOptions("cpu")))
    assert (found["b.scale"] > 0).all()
    np.testing.assert_array_equal(found["b.q"], np.zeros(4))


def test_maxpool_carries_the_scale_of_what_it_pools():
    example = make_example("resnet50", stem="cifar-pool")
    found = constants(quantised(example, "cpu"))
    assert found["maxpool.out.scale"] == found["relu.out.scale"]
    assert found["flatten.out.scale"] == found["avgpool.out.scale"]


@pytest.mark.parametrize("target", list(FORMS))
def test_the_logits_stay_near(example, target):
    model = quantised(example, target)
    assert error(example, logits(model, example)) < 0.1
    assert set(quantised_layers(model)) == {
        "fc",
        *(n for n in example.source.layers() if "conv" in n or "down" in n),
    }


@pytest.mark.parametrize("target", list(FORMS))
def test_no_layer_quantised_is_the_float_model(example, target):
    model = quantised(example, target, float_layers=frozenset(example.source.layers()))
    assert "QuantizeLinear" not in operators(model)
    np.testing.assert_allclose(logits(model, example), example.logits[:48], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", list(FORMS))
def test_a_layer_kept_in_float_reads_float(bottleneck, target):
    model = quantised(bottleneck, target, float_layers=frozenset({"layer1.1.conv2", "fc"}))
    assert reads_pairs(model, "layer1.1.conv2") == reads_pairs(model, "fc") == [False] * 3
    assert reads_pairs(model, "layer1.1.conv3")[:2] == [True, True]
    assert "fc" not in quantised_layers(model)


def test_float_weights_for_tensorrt_8():
    example = make_example("resnet18", opset=17)
    model = quantised(example, float_weights=True)
    found, plain = constants(model), quantised(example)
    assert found["conv1.weight"].dtype == np.float32
    assert not any(name.endswith(".q") for name in found)
    np.testing.assert_array_equal(logits(model, example), logits(plain, example))


def test_half_scales_survive_fp16(bottleneck):
    model = quantised(bottleneck, half_scales=True)
    scales = [v for n, v in constants(model).items() if n.endswith(".scale")]
    assert all((v == v.astype(np.float16)).all() and (v > 0).all() for v in scales)
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    assert all(v.dtype == np.float16 for n, v in constants(half).items() if n.endswith(".scale.fp16"))
    assert error(bottleneck, logits(half, bottleneck)) < 0.1


def test_neighbouring_products_of_the_cpu_form_fit_16_bits(example):
    """x86 without VNNI adds u8 × s8 products of neighbours in 16 bits, and which are neighbours is the
    kernel's choice: no two weights of an output channel may exceed what fits.
    """
    model = quantised(example, "cpu")
    found = constants(model)
    stored = [v for name, v in found.items() if v.dtype == np.int8 and name.endswith(".q")]
    assert len(stored) == len(quantised_layers(model))
    for weights in stored:
        largest = np.sort(np.abs(weights.reshape(len(weights), -1).astype(int)), axis=1)[:, -2:]
        assert (255 * largest.sum(axis=1)).max() < 2**15
    assert max(np.abs(weights.astype(int)).max() for weights in stored) == 64


def test_the_cpu_form_is_the_same_with_exact_integers(example):
    """In anybody's session, where this CPU has no VNNI."""
    model = quantised(example, "cpu")
    np.testing.assert_array_equal(run(model, example), run(model, example, x64quantprecision="1"))


def nearly_dead(example):
    """The example with one more channel of each convolution switched off, as the subgradient leaves it:
    weights that are all but 0, and a bias.
    """
    model = onnx.ModelProto()
    model.CopyFrom(example.model)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".weight") and len(tensor.dims) == 4:
            weights = numpy_helper.to_array(tensor).copy()
            weights[1] *= 1e-9
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    found = Network(model, threads=1).logits(example.images, PREPROCESSING)
    return Example(model, classifier(model, source="example"), example.images, found.argmax(axis=1), found)


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_the_tensorrt_form_is_right_at_every_optimisation_level(bottleneck, half):
    """From level 1 on, onnxruntime stores a float bias as INT32 in steps of (activation × weight scale), and
    computes these in the type of the scales.
    """
    dead = nearly_dead(bottleneck)
    model = quantised(dead, half_scales=half)
    model = to_fp16(model) if half else model
    by_the_letter = error(dead, run(model, dead, level=0))
    for level in (1, 2, 99):
        assert error(dead, run(model, dead, level=level)) < 1.5 * by_the_letter, level


class TestBatchFolding:
    def test_the_same_logits(self, example):
        model = quantised(example, "cpu")
        folded = fold_batch(model)
        onnx.checker.check_model(folded, full_check=True)
        np.testing.assert_array_equal(logits(folded, example), logits(model, example))

    def test_one_image_and_several(self, bottleneck):
        network = Network(fold_batch(quantised(bottleneck, "cpu")), threads=1)
        batch = next(batches(bottleneck.images[:7], PREPROCESSING))
        together = network.run(batch)[0]
        for i in range(7):
            np.testing.assert_allclose(network.run(batch[i : i + 1])[0][0], together[i], atol=1e-5)

    def test_float_layers_stay_out_of_it(self, bottleneck):
        kept = frozenset({"layer1.1.conv3", "layer2.0.downsample.0", "layer3.1.add"})
        model = quantised(bottleneck, "cpu", float_layers=kept)
        np.testing.assert_allclose(
            logits(fold_batch(model), bottleneck), logits(model, bottleneck), rtol=1e-4, atol=1e-4
        )

    def test_onnxruntime_computes_on_integers_without_transposing(self, bottleneck, tmp_path):
        model = fold_batch(quantised(bottleneck, "cpu"))
        assert operators(model)["Reshape"] > 10
        session(model, optimised=tmp_path / "optimised.onnx")
        found = operators(onnx.load(tmp_path / "optimised.onnx"))
        convs, sums = operators(bottleneck.model)["Conv"], operators(bottleneck.model)["Add"]
        assert (found["QLinearConv"], found["QLinearAdd"], found["QGemm"]) == (convs, sums, 1)
        assert (found["Conv"], found["Relu"], found["Add"], found["DequantizeLinear"]) == (0, 0, 0, 0)
        assert found["Transpose"] <= 2  # the image into NHWC, and at most one back


def test_with_all_layers_in_float_nothing_is_quantised():
    """Not even what a gate multiplies, which is no layer itself."""
    source = classifier(
        small_model(
            node("Conv", ["x", "w"], "conv"),
            node("Relu", ["conv"], "relu"),
            node("GlobalAveragePool", ["relu"], "squeezed"),
            node("Conv", ["squeezed", "e"], "excite"),
            node("Sigmoid", ["excite"], "gate"),
            node("Mul", ["relu", "gate"], "scaled"),
            node("GlobalAveragePool", ["scaled"], "pool"),
            node("Flatten", ["pool"], "y"),
            constants={"w": np.ones((4, 3, 1, 1)), "e": np.ones((4, 4, 1, 1))},
        ),
        source="it",
    )
    thresholds = dict.fromkeys(source.activations, 1.0)
    for target in FORMS:
        options = QdqOptions(target=target)
        made = insert_qdq(source, thresholds, options=options, float_layers=frozenset(source.layers()))
        assert {n.op_type for n in made.graph.node} == {n.op_type for n in source.nodes}
        mixed = insert_qdq(source, thresholds, options=options, float_layers=frozenset({"conv"}))
        gated = next(n for n in mixed.graph.node if n.op_type == "Mul")
        assert gated.input[0] == "relu", "what a layer in float makes is read in float"
