"""The networks that a latency table is measured on: random widths, weights of noise."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import onnx

from slimdeploy.toolchain.export.graph import Parameters, build_graph
from slimdeploy.toolchain.networks.channels import ChannelConfig
from slimdeploy.toolchain.networks.layers import Conv
from slimdeploy.toolchain.networks.spec import NetworkSpec

ALIGNMENT = 8
"""Widths drawn are multiples of it."""
OPSET = 17
RANGE = 4.0
"""Values beyond it are clipped where activations are INT8: noise of variance 1 is mostly within."""


def random_network(full: NetworkSpec, rng: random.Random) -> NetworkSpec:
    """The network at random widths: some overall share, each width around it; residual streams whole or
    narrowed like the rest.
    """
    share = math.exp(rng.uniform(math.log(0.06), 0))
    coupled = rng.random() < 0.5
    channels, arch = full.channels, full.architecture

    def narrow(width: int) -> int:
        wanted = min(width, share * rng.uniform(0.5, 1.6) * width)
        return max(ALIGNMENT, round(wanted / ALIGNMENT) * ALIGNMENT)

    stem, blocks = narrow(channels.stem), []
    stream = stem
    for name, (*inner, out) in channels.named(arch):
        if arch.has_projection(name):
            stream = narrow(out) if coupled else out
        blocks.append((*map(narrow, inner), stream))
    return full.with_channels(ChannelConfig(stem, tuple(blocks)))


def build_noise(spec: NetworkSpec, size: int, precision: str = "fp32", *, opset: int = OPSET) -> bytes:
    """The network as a serialised ONNX model in `precision`, with weights of noise.

    `int8` has Q/DQ pairs in the form for TensorRT, and from opset 19 on computes the rest in FP16.
    """
    model = build_graph(spec, size, conv=_noise, classifier=_noise_classifier(spec), opset=opset)
    if precision == "int8":
        model = _quantised(model, half=opset >= 19)
    elif precision == "fp16":
        from slimdeploy.toolchain.export.precision import to_fp16

        model = to_fp16(model)
    return model.SerializeToString()


def _quantised(model: onnx.ModelProto, *, half: bool) -> onnx.ModelProto:
    from slimdeploy.calibrate.classifier import classifier
    from slimdeploy.calibrate.qdq import QdqOptions, insert_qdq
    from slimdeploy.toolchain.export.precision import to_fp16

    source = classifier(model, source="a network of noise")
    options = QdqOptions(half_scales=half, float_weights=not half)
    made = insert_qdq(source, dict.fromkeys(source.activations, RANGE), options=options)
    return to_fp16(made) if half else made


@functools.cache
def _pool() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)


def _noise(conv: Conv) -> Parameters:
    """Weights that keep activations near 1: no time is lost to denormal or infinite numbers."""
    fan_in = conv.in_channels * conv.kernel**2
    shape = (conv.out_channels, conv.in_channels, conv.kernel, conv.kernel)
    return np.resize(_pool() / np.float32(math.sqrt(fan_in)), shape), np.resize(_pool(), conv.out_channels)


def _noise_classifier(spec: NetworkSpec) -> Parameters:
    width = spec.channels.blocks[-1][-1]
    return np.resize(_pool(), (spec.classes, width)), np.resize(_pool(), spec.classes)
