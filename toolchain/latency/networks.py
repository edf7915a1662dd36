"""The networks for measuring a latency table: random widths, random weights."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import onnx

from slimdeploy.toolchain.export.graph import build_graph
from slimdeploy.toolchain.networks.channel_groups import ChannelGroup, channel_groups, unit_channels
from slimdeploy.toolchain.networks.cutting import at_widths
from slimdeploy.toolchain.networks.graph import Graph, Node

ALIGNMENT = 8
"""Random widths are multiples of this."""
OPSET = 17
RANGE = 4.0
"""Clipping threshold of INT8 activations: random values of variance 1 are mostly within."""


def random_network(full: Graph, rng: random.Random) -> Graph:
    """The network at random widths: each width varies around a common share; residual streams are whole or
    narrowed.
    """
    share = math.exp(rng.uniform(math.log(0.06), 0))
    coupled = rng.random() < 0.5
    groups = channel_groups(full, residual="couple")
    channels = unit_channels(groups)

    def narrow(group: ChannelGroup) -> int:
        wanted = min(1.0, share * rng.uniform(0.5, 1.6)) * group.width
        step = ALIGNMENT // math.gcd(ALIGNMENT, channels[group.name])
        return min(group.width, max(step, round(wanted / step) * step))

    widths = {g.name: narrow(g) if coupled or not g.residual else g.width for g in groups}
    return at_widths(full, groups, widths)


def build_noise(
    graph: Graph, size: int, precision: str = "fp32", *, opset: int = OPSET, target: str = "tensorrt"
) -> bytes:
    """The network as a serialised ONNX model in `precision`, with random weights.

    `int8` has Q/DQ pairs in the form for `target` (calibrate/target_form.py); for `tensorrt` the other layers
    run in FP16 from opset 19 on.
    """
    model = build_graph(graph, size, parameters=_noise, opset=opset)
    if precision == "int8":
        model = _quantised(model, target, half=target == "tensorrt" and opset >= 19)
    elif precision == "fp16":
        from slimdeploy.toolchain.export.precision import to_fp16

        model = to_fp16(model)
    return model.SerializeToString()


def _quantised(model: onnx.ModelProto, target: str, *, half: bool) -> onnx.ModelProto:
    from slimdeploy.calibrate.classifier import classifier
    from slimdeploy.calibrate.qdq import QdqOptions, set_precision
    from slimdeploy.calibrate.target_form import form_facts, prepare, quantise
    from slimdeploy.toolchain.export.precision import to_fp16

    source = prepare(classifier(model, source="a network of noise"), target)
    float_weights = target == "tensorrt" and not half  # the form for TensorRT 8
    options = QdqOptions(target, half_scales=half, float_weights=float_weights)
    made = quantise(source, dict.fromkeys(source.activations, RANGE), options=options)
    return set_precision(to_fp16(made) if half else made, "int8", **form_facts(target))


@functools.cache
def _pool() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)


def _noise(node: Node, batchnorm: Node | None) -> dict[str, np.ndarray]:
    """Weights that keep activations near 1, so that denormal or infinite numbers don't affect the time."""
    shapes = {name: tensor.shape for name, tensor in node.op.tensors(node).items()}
    found = {name: np.resize(_pool(), shape) for name, shape in shapes.items()}
    if "" in found:  # factors, summands and fixed filters; not exactly 1, which a runtime may leave out
        taps = math.prod(node.attributes.get("kernel", ()))
        return {"": (1 + found[""] / 8) / np.float32(taps)}
    if node.operator == "batchnorm":
        return found | {"running_var": np.ones(shapes["running_var"], np.float32)}
    weight = found["weight"] / np.float32(math.sqrt(math.prod(shapes["weight"][1:])))
    return {"weight": weight, "bias": np.resize(_pool(), shapes["weight"][0])}
