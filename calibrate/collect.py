"""Run images through a model to collect a histogram of every activation, or the range of its channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from slimdeploy.calibrate.classifier import Classifier
from slimdeploy.calibrate.histogram import Histogram, histogram, merge
from slimdeploy.calibrate.inference import Network
from slimdeploy.toolchain.errors import SlimdeployError


def collect(
    classifier: Classifier,
    batches: Iterable[np.ndarray],
    *,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> dict[str, Histogram]:
    """Histograms of every activation of `classifier` over `batches` of (n, C, H, W) float32 images.

    Only one batch of activations is in memory at a time. Raises SlimdeployError if there are no images, or if
    an activation is NaN or infinite, naming its layer.
    """
    names = [name for name in classifier.activations if name != classifier.input]
    network = Network(_with_outputs(classifier, names), threads=threads, inner=True)
    found: dict[str, Histogram] = {}
    for batch in batches:
        for name, values in zip([classifier.input, *names], [batch, *network.run(batch)], strict=True):
            try:
                seen = histogram(values)
            except ValueError:
                where = (
                    "the images"
                    if name == classifier.input
                    else f"activations of {classifier.producers[name].name}"
                )
                raise SlimdeployError(f"{where} contain NaN or infinity: can't calibrate") from None
            found[name] = merge(found[name], seen) if name in found else seen
        advance(len(batch))
    if not found:
        raise SlimdeployError("no images to calibrate with")
    return found


def collect_widths(
    classifier: Classifier,
    tensors: Sequence[str],
    batches: Iterable[np.ndarray],
    *,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> dict[str, np.ndarray]:
    """The largest |x| of each channel, (C,), of the activations named; NaN where one is NaN."""
    if not tensors:
        return {}
    network = Network(_with_outputs(classifier, list(tensors)), threads=threads, inner=True)
    found: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, values in zip(tensors, network.run(batch), strict=True):
            others = tuple(axis for axis in range(values.ndim) if axis != 1)
            seen = np.maximum(values.max(axis=others), -values.min(axis=others))
            found[name] = np.maximum(found[name], seen) if name in found else seen
        advance(len(batch))
    return found


def _with_outputs(classifier: Classifier, names: list[str]) -> onnx.ModelProto:
    """The model with `names` as its outputs, in that order."""
    model = onnx.ModelProto()
    model.CopyFrom(classifier.model)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return model
