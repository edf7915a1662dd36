from __future__ import annotations

import numpy as np
import pytest
from calibrate_examples import PREPROCESSING, node, small_model

from slimdeploy.calibrate import equalisation
from slimdeploy.calibrate.classifier import classifier
from slimdeploy.calibrate.collect import collect_widths
from slimdeploy.calibrate.equalisation import channel_scales, equalise, streams, tensors_to_equalise
from slimdeploy.calibrate.inference import Network, batches

WEIGHTS = {"w1": np.ones((2, 3, 1, 1)), "b1": [1.0, 2.0], "w2": np.full((4, 2), 3.0), "b2": np.ones(4)}


def two_layers(transposed=True):
    """Two channels between a convolution and the classifier."""
    constants = WEIGHTS if transposed else {**WEIGHTS, "w2": WEIGHTS["w2"].T}
    return small_model(
        node("Conv", ["x", "w1", "b1"], "conv"),
        node("Relu", ["conv"], "relu"),
        node("GlobalAveragePool", ["relu"], "pool"),
        node("Flatten", ["pool"], "flat"),
        node("Gemm", ["flat", "w2", "b2"], "y", transB=int(transposed)),
        constants=constants,
    )


def widths_of(example):
    stream = batches(example.images[:32], PREPROCESSING)
    return collect_widths(example.source, tensors_to_equalise(example.source), stream, threads=1)


def spread(widths):
    """How much wider the widest channel is than the median one, on average over the tensors."""
    return np.mean([width.max() / np.median(width[width > 0]) for width in widths.values()])


@pytest.mark.parametrize("transposed", [True, False])
def test_a_narrow_channel_is_widened_and_its_reader_shrunk(transposed, monkeypatch):
    monkeypatch.setattr(equalisation, "EXPONENT", 1.0)
    source = classifier(two_layers(transposed), source="it")
    assert streams(source) == [["conv", "relu", "pool", "flat"]]
    found = equalise(source, {"relu": np.float32([8, 2])}).constants
    np.testing.assert_array_equal(found["conv.weight.equalised"].ravel(), [1, 1, 1, 4, 4, 4])
    np.testing.assert_array_equal(found["conv.bias.equalised"], [1, 8])
    weight = found["y.weight.equalised"]
    np.testing.assert_array_equal((weight if transposed else weight.T)[0], [3, 0.75])
    np.testing.assert_array_equal(found["y.bias.equalised"], np.ones(4))


def test_a_stream_takes_the_mean_over_its_tensors(monkeypatch):
    monkeypatch.setattr(equalisation, "EXPONENT", 1.0)
    source = classifier(two_layers(), source="it")
    # Shares of 1/4 and 1/16 make 1/8: the first tensor keeps its width of 4, the second would come to 8.
    scales = channel_scales(source, {"relu": np.float32([16, 4]), "pool": np.float32([16, 1])})
    np.testing.assert_allclose(scales["flat"], [2, 0.25])


def test_dead_and_nearly_dead_channels_are_not_blown_up():
    source = classifier(two_layers(), source="it")
    np.testing.assert_allclose(channel_scales(source, {"relu": np.float32([8, 0])})["relu"], [1, 1])
    scales = channel_scales(source, {"relu": np.float32([8, 1e-9])})["relu"]
    np.testing.assert_allclose(scales, [1, equalisation.LEAST**equalisation.EXPONENT])
    assert channel_scales(source, {"relu": np.float32([0, 0])}) == {}
    assert channel_scales(source, {"relu": np.float32([np.nan, 1])}) == {}


def test_the_logits_stay_and_no_tensor_widens(example):
    widths = widths_of(example)
    made = equalise(example.source, widths)
    logits = Network(made.model, threads=1).logits(example.images, PREPROCESSING)
    np.testing.assert_allclose(logits, example.logits, rtol=1e-4, atol=1e-4)
    after = collect_widths(made, list(widths), batches(example.images[:32], PREPROCESSING), threads=1)
    assert spread(after) < 0.8 * spread(widths)
    for tensor, width in widths.items():
        assert after[tensor].max() <= width.max() * 1.001


def test_a_residual_stream_shares_one_scale(bottleneck):
    stream = next(s for s in streams(bottleneck.source) if "layer1.0.add.out" in s)
    assert {
        "layer1.0.downsample.0.out",
        "layer1.0.relu.out",
        "layer1.1.conv3.out",
        "layer1.2.relu.out",
    } <= set(stream)
    scales = channel_scales(bottleneck.source, widths_of(bottleneck))
    assert len({id(scales[tensor]) for tensor in stream}) == 1


def test_a_grouped_convolution_behind_a_gate_reads_its_own_group(monkeypatch):
    """Squeeze and excitation between grouped convolutions, as in a RegNet."""
    monkeypatch.setattr(equalisation, "EXPONENT", 1.0)
    generator = np.random.default_rng(0)
    shapes = {"w1": (4, 3, 1, 1), "b1": (4,), "s": (2, 4, 1, 1), "e": (4, 2, 1, 1), "g": (6, 2, 1, 1)}
    model = small_model(
        node("Conv", ["x", "w1", "b1"], "conv"),
        node("Relu", ["conv"], "relu"),
        node("GlobalAveragePool", ["relu"], "squeezed"),
        node("Conv", ["squeezed", "s"], "fc1"),
        node("Conv", ["fc1", "e"], "fc2"),
        node("Sigmoid", ["fc2"], "gate"),
        node("Mul", ["gate", "relu"], "scaled"),
        node("Conv", ["scaled", "g"], "grouped", group=2),
        node("GlobalAveragePool", ["grouped"], "pool"),
        node("Flatten", ["pool"], "y"),
        constants={name: generator.standard_normal(shape) for name, shape in shapes.items()},
    )
    source = classifier(model, source="it")
    assert streams(source) == [["conv", "relu", "squeezed", "scaled"], ["fc1"]]
    made = equalise(source, {"scaled": np.float32([8, 2, 4, 1]), "fc1": np.float32([1, 3])})
    ratio = made.constants["grouped.weight.equalised"] / source.constants["g"]
    first, second = [1, 1 / 4], [1 / 2, 1 / 8]
    np.testing.assert_allclose(ratio[..., 0, 0], [first] * 3 + [second] * 3, rtol=1e-6)
    images = np.random.default_rng(1).standard_normal((4, *source.image_shape)).astype(np.float32)
    logits = [Network(one.model, threads=1).run(images)[0] for one in (source, made)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-5)


def test_what_scales_do_not_pass_through_is_left_alone():
    silu = small_model(
        node("Conv", ["x", "w"], "conv"),
        node("Sigmoid", ["conv"], "sigmoid"),
        node("Mul", ["conv", "sigmoid"], "silu"),
        node("GlobalAveragePool", ["silu"], "pool"),
        node("Flatten", ["pool"], "y"),
        constants={"w": np.ones((4, 3, 1, 1))},
    )
    assert streams(classifier(silu, source="it")) == []
    positions = small_model(
        node("Conv", ["x", "w"], "conv"),
        node("Flatten", ["conv"], "flat"),
        node("Gemm", ["flat", "g"], "y"),
        constants={"w": np.ones((2, 3, 1, 1)), "g": np.ones((128, 4))},
    )
    assert streams(classifier(positions, source="it")) == []
