from __future__ import annotations

import functools

import numpy as np
import onnxruntime
import pytest
from calibrate_examples import PREPROCESSING, node, small_model

from slimdeploy.calibrate.classifier import classifier
from slimdeploy.calibrate.collect import collect
from slimdeploy.calibrate.histogram import histogram, merge
from slimdeploy.calibrate.inference import Network, batches
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.preprocess import normalise


def tiny(weight):
    model = small_model(
        node("Conv", ["x", "w"], "conv", kernel_shape=[1, 1]),
        node("Relu", ["conv"], "relu"),
        node("GlobalAveragePool", ["relu"], "pool"),
        node("Flatten", ["pool"], "y"),
        constants={"w": weight},
    )
    return classifier(model, source="tiny")


def test_every_activation_is_counted():
    weight = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)
    stream = [np.random.default_rng(i).standard_normal((2, 3, 8, 8)).astype(np.float32) for i in range(3)]
    found = collect(tiny(weight), stream)
    assert list(found) == ["x", "conv", "relu", "pool", "y"]
    conv = np.concatenate([np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x) for x in stream])
    assert found["x"].total == 6 * 3 * 64
    assert found["conv"].total == conv.size
    assert found["conv"].maximum == pytest.approx(conv.max(), rel=1e-5)
    assert found["relu"].minimum == 0
    assert found["relu"].zeros == pytest.approx((conv <= 0).sum(), abs=2)


def test_the_size_of_batches_does_not_matter(bottleneck):
    by_fours = collect(bottleneck.source, batches(bottleneck.images[:12], PREPROCESSING, 4))
    by_sixes = collect(bottleneck.source, batches(bottleneck.images[:12], PREPROCESSING, 6))
    assert list(by_fours) == bottleneck.source.activations
    for name, one in by_fours.items():
        other = by_sixes[name]
        assert one.total == other.total
        assert one.maximum == pytest.approx(other.maximum, rel=1e-4, abs=1e-5)


def test_images_are_counted_as_the_network_sees_them(bottleneck):
    found = collect(bottleneck.source, batches(bottleneck.images[:5], PREPROCESSING, 2))["images"]
    parts = [histogram(normalise(bottleneck.images[i : i + 2], PREPROCESSING)) for i in (0, 2, 4)]
    parts[-1] = histogram(normalise(bottleneck.images[4:5], PREPROCESSING))
    expected = functools.reduce(merge, parts)
    np.testing.assert_array_equal(found.counts, expected.counts)


def test_nan_names_the_layer():
    stream = [np.ones((1, 3, 8, 8), np.float32)]
    with pytest.raises(SlimdeployError, match="activations of conv contain NaN"):
        collect(tiny(np.full((4, 3, 1, 1), np.nan, np.float32)), stream)
    with pytest.raises(SlimdeployError, match=r"^the images contain NaN"):
        collect(tiny(np.ones((4, 3, 1, 1), np.float32)), [np.full((1, 3, 8, 8), np.nan, np.float32)])


def test_no_images():
    with pytest.raises(SlimdeployError, match="no images to calibrate with"):
        collect(tiny(np.ones((4, 3, 1, 1), np.float32)), [])


def test_a_model_that_onnxruntime_refuses_is_one_line(bottleneck, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(SlimdeployError, match=r"onnxruntime can't load the model \(no kernel\)"):
        Network(bottleneck.model)
