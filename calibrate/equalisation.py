"""Rescale the channels of a tensor to similar ranges; the logits stay the same.

Activations have one scale per tensor. On a residual sum the widest channel can be ten times as wide as the
median one, which then uses only a dozen of the 127 steps. If a channel is divided by a factor before a ReLU,
a pooling or a sum, the weights after it can be multiplied by it (Nagel et al. 2019, arXiv 1906.04721, section
4.1); weights have one scale per output channel. All tensors of a residual stream share their channels, hence
one factor for the whole stream.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx

from slimdeploy.calibrate.classifier import Classifier, attributes, classifier
from slimdeploy.calibrate.passes import GraphWriter
from slimdeploy.calibrate.qdq import WEIGHTED, quantised_inputs

EXPONENT = 0.5
"""Exponent of the rescaling: with 1 all channels get the same range, but the weights that read them become as
unequal as the channels were. The square root is a compromise (SmoothQuant, arXiv 2211.10438, section 4); it
was the best of 0.5, 0.7 and 1 on held-out images.
"""
LEAST = 0.01
"""Minimum range of a channel, relative to the widest one of its tensor."""
_GATES = ("Sigmoid", "HardSigmoid")
_CHANNELWISE = ("Relu", "MaxPool", "GlobalAveragePool", "AveragePool", "Flatten", "Add")
"""Operators whose output channel i depends only on input channel i, and which commute with positive
factors.
"""


def equalise(source: Classifier, widths: Mapping[str, np.ndarray]) -> Classifier:
    """`source` with rescaled channels of its quantised tensors.

    `widths` gives the largest |x| of each channel, (C,), of the tensors_to_equalise, on real images.
    """
    scales = channel_scales(source, widths)
    writer = GraphWriter(constants=dict(source.constants))
    for node in source.nodes:
        before, after = scales.get(node.input[0]), scales.get(node.output[0])
        if node.op_type not in WEIGHTED or (before is None and after is None):
            writer.copy(node)
            continue
        weight, *bias = (source.constants[name].astype(np.float64) for name in node.input[1:])
        outputs = _output_axis(node)
        if before is not None:
            weight = _times_inputs(weight, before, attributes(node).get("group", 1), outputs)
        if after is not None:
            weight = weight / _along(outputs, after, weight.ndim)
            bias = [values / after for values in bias]
        names = ("weight", "bias")
        made = [
            writer.constant(f"{node.name}.{name}.equalised", values.astype(np.float32))
            for name, values in zip(names, [weight, *bias], strict=False)
        ]
        writer.copy(node, [node.input[0], *made])
    return classifier(writer.model(source.model), source="the equalised model")


def tensors_to_equalise(source: Classifier) -> list[str]:
    """The tensors whose ranges determine the factors: those that TensorRT reads in INT8, on rescalable
    streams.
    """
    read = {source.origin(t) for node in source.nodes for t in quantised_inputs(source, node, "tensorrt")}
    return [tensor for stream in streams(source) for tensor in stream if tensor in read]


def channel_scales(source: Classifier, widths: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The divisor of each channel, (C,), the same for all tensors of a stream."""
    found = {}
    for stream in streams(source):
        measured = [widths[tensor] for tensor in stream if tensor in widths and widths[tensor].any()]
        if not measured or not np.isfinite(measured).all():  # collect() reports the layer
            continue
        # The range of a channel relative to its tensor, geometric mean over the tensors.
        shares = np.stack([np.maximum(width / width.max(), LEAST) for width in measured])
        scale = np.exp(np.log(shares.astype(np.float64)).mean(axis=0)) ** EXPONENT
        scale[~np.any(measured, axis=0)] = 1.0  # never active: its range is unknown
        # No tensor may become wider than before: values that fit in FP16 must still fit.
        scale = scale * max((width / scale).max() / width.max() for width in measured)
        found.update(dict.fromkeys(stream, scale))
    return found


def streams(source: Classifier) -> list[list[str]]:
    """Sets of tensors that must share the factors of their channels.

    Excluded are the images, the logits, and tensors of operators that don't commute with factors.
    """
    parents: dict[str, str] = {}

    def root(tensor: str) -> str:
        while (parent := parents.get(tensor, tensor)) != tensor:
            tensor = parent
        return tensor

    fixed = {source.input, source.output}
    channels: dict[str, int] = {}
    for node in source.nodes:
        passed = _passed_through(source, node)
        for tensor in passed:
            parents[root(tensor)] = root(node.output[0])
        if node.op_type in WEIGHTED:
            outputs, shape = _output_axis(node), source.constants[node.input[1]].shape
            read = shape[1 - outputs] * attributes(node).get("group", 1)
            channels |= {node.input[0]: read, node.output[0]: shape[outputs]}
        else:
            fixed |= {*source.read_by(node), *(() if passed else node.output)}.difference(passed)
    found: dict[str, list[str]] = defaultdict(list)
    for tensor in source.activations:
        found[root(tensor)].append(tensor)
    return [
        stream
        for stream in found.values()
        # The counts differ if Flatten turns positions into channels.
        if not fixed.intersection(stream) and len({channels[t] for t in stream if t in channels}) == 1
    ]


def _passed_through(source: Classifier, node: onnx.NodeProto) -> list[str]:
    """The inputs of `node` whose channel factors pass to its output."""
    if node.op_type in _CHANNELWISE and len(source.read_by(node)) == len(node.input):
        return list(node.input)
    if node.op_type == "Mul":  # squeeze and excitation: the gate keeps its values, what it weights may change
        makers = [source.producers.get(tensor) for tensor in node.input]
        gates = [maker is not None and maker.op_type in _GATES for maker in makers]
        if sorted(gates) == [False, True] and len(source.read_by(node)) == 2:
            return [node.input[gates.index(False)]]
    return []


def _times_inputs(weight: np.ndarray, factors: np.ndarray, groups: int, outputs: int) -> np.ndarray:
    """`weight` with what it multiplies each input channel by multiplied by `factors` (C,); `outputs` is the
    axis of its output channels. An output channel reads the inputs of its own group.
    """
    rows = np.repeat(factors.reshape(groups, -1), weight.shape[outputs] // groups, axis=0)
    rows = rows if outputs == 0 else rows.T
    return weight * rows.reshape(*rows.shape, *(1,) * (weight.ndim - 2))


def _output_axis(node: onnx.NodeProto) -> int:
    return 1 if node.op_type == "Gemm" and not attributes(node).get("transB", 0) else 0


def _along(axis: int, values: np.ndarray, dimensions: int) -> np.ndarray:
    """`values` (C,) reshaped for multiplication along `axis`."""
    return np.expand_dims(values, tuple(i for i in range(dimensions) if i != axis))
