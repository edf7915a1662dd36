"""The latency table: time of every convolution of an architecture at any width, on one device.

For each shape (kernel, stride, input size, and whether a residual sum is fused in) the table contains the
coefficients of a convolution's time: per launch, per input channel, per output channel, per pair of them, and
per weight that is read from memory because the network's weights don't fit in the cache. No coefficient is
negative, so a narrower convolution is never slower. `slimdeploy lut` measures (measure.py) and fits it
(fit.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.measure.process_memory import MB, WEIGHT_BYTES
from slimdeploy.toolchain.networks.cost import round_up
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import Layer, priced_layers

KIND = "lut"
TERMS = ("launch", "input", "output", "product", "blocks", "streaming")
"""The factors of the coefficients of a shape: see `terms`."""
BLOCK = 4
"""Kernels compute several vectors of output channels at a time (onnxruntime up to 4); the rest is padding."""


def shape_of(conv: Layer) -> str:
    """Key of the layers that share coefficients: `3x3/2@16` has stride 2 and an input of 16×16; `3x3/1@16 of
    1` is depthwise, with one input channel per group; `3x3/1@16 dilated 2` has a dilation of 2.
    """
    if conv.operator == "linear":
        return "linear"
    height, width = conv.kernel
    kind = f" of {conv.in_channels // conv.groups}" if conv.groups > 1 else ""
    if conv.dilation != (1, 1):
        kind += f" dilated {_side(conv.dilation)}"
    key = f"{height}x{width}/{_side(conv.stride)}@{_side(conv.in_size)}"
    return f"{key}{kind}{'+sum' if conv.summed else ''}"


def _side(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def terms(inputs: Any, outputs: Any, streamed: Any, granularity: int) -> tuple[Any, ...]:
    """The values of TERMS for one convolution or, given arrays, for many.

    `inputs` and `outputs` are its widths, which the runtime pads to multiples of `granularity`; `streamed` is
    the share of the weights that is read from memory in every run.
    """
    wide, out = round_up(inputs, granularity), round_up(outputs, granularity)
    blocks = round_up(outputs, BLOCK * granularity)
    product = wide * out
    return 1.0, wide, out, product, wide * blocks, product * streamed


def streamed_share(weights_mb: Any, cache_mb: float | None) -> Any:
    """The share of a network's weights that doesn't stay in the cache between runs; for many networks given
    an array.
    """
    return np.maximum(0.0, 1 - cache_mb / weights_mb) if cache_mb else 0.0 * weights_mb


def weights_mb(convs: Iterable[Layer], device: dict[str, Any]) -> float:
    """Size of the convolution weights in MB (2^20 bytes), in the precision of a table's `device`."""
    return sum(conv.weights for conv in convs) * WEIGHT_BYTES[precision_of(device)] / MB


def precision_of(device: dict[str, Any]) -> str:
    """The precision in a table's `device`; FP32 if missing."""
    return str(device.get("precision", "fp32"))


@dataclass(frozen=True)
class LatencyTable:
    """Predicts times in ms on `device` for batches of `batch` images."""

    device: dict[str, Any]
    batch: int
    granularity: int
    """Widths are padded to multiples of this on the device: the alignment to prune to."""
    cache_mb: float | None
    """If a network's weights exceed this size in MB, the excess is read from memory in every run; None: no
    limit seen.
    """
    shapes: dict[str, tuple[float, ...]]
    """Shape -> ms for each of TERMS."""
    rest: tuple[float, float, float]
    """Pooling, classifier and overhead per run: ms, ms per stem channel, ms per classifier input."""
    layer_ms: float = 0.0
    """Added to each convolution; negative by the overhead of profiling, if the shapes were profiled."""

    @property
    def precision(self) -> str:
        return precision_of(self.device)

    def conv_ms(self, conv: Layer, *, streamed: float = 0.0) -> float:
        """Time of one convolution within a network, with its ReLU and residual sum. `streamed` is the share
        of the network's weights that is read from memory.

        Raises SlimdeployError for a shape that wasn't measured.
        """
        values = terms(conv.in_channels, conv.out_channels, 0.0, self.granularity)
        ms = sum(value * each for value, each in zip(values, self._coefficients(conv), strict=True))
        return max(0.0, ms + self.layer_ms) + streamed * self.streaming_ms(conv)

    def streaming_ms(self, conv: Layer) -> float:
        """Additional time of one convolution if all weights are read from memory."""
        *_, streaming = terms(conv.in_channels, conv.out_channels, 1.0, self.granularity)
        return float(streaming * self._coefficients(conv)[-1])

    def _coefficients(self, conv: Layer) -> tuple[float, ...]:
        shape = shape_of(conv)
        if shape not in self.shapes:
            kind = "linear layer" if conv.operator == "linear" else f"{shape} convolution"
            raise SlimdeployError(
                f"the latency table has no {kind} ({conv.name}): measure one of this network with slimdeploy "
                "lut CHECKPOINT"
            )
        return self.shapes[shape]

    def rest_ms(self, *, stem: int, classifier_in: int) -> float:
        """Time of everything except convolutions, for the given widths."""
        constant, by_stem, by_classifier = self.rest
        return constant + by_stem * stem + by_classifier * classifier_in

    def streamed(self, weights_mb: float) -> float:
        """The share of the weights of a network that is read from memory in every run; `weights_mb` in MB."""
        return float(streamed_share(weights_mb, self.cache_mb))

    def network_ms(self, graph: Graph, size: int) -> float:
        """Time of one run of the network on a batch of square images with a side of `size` pixels.

        Raises SlimdeployError if the table lacks one of its shapes.
        """
        return self.layers_ms(priced_layers(graph, size), ends(graph))

    def layers_ms(self, convs: Sequence[Layer], ends: tuple[int, int]) -> float:
        """`network_ms` of the network with the layers `convs` (layers.priced_layers) and these `ends`."""
        streamed = self.streamed(weights_mb(convs, self.device))
        stem, classifier_in = ends
        rest = self.rest_ms(stem=stem, classifier_in=classifier_in)
        return rest + sum(self.conv_ms(conv, streamed=streamed) for conv in convs)

    def to_json(self) -> dict[str, Any]:
        """The `model` of a `lut` document."""
        return {
            "granularity": self.granularity,
            "cache_mb": self.cache_mb,
            "terms": list(TERMS),
            "shapes": {name: list(values) for name, values in self.shapes.items()},
            "rest": list(self.rest),
            "layer_ms": self.layer_ms,
        }


def ends(graph: Graph) -> tuple[int, int]:
    """Output channels of the first layer and inputs of the last; the time of everything that isn't priced
    separately depends on them.
    """
    weighted = [node for node in graph.nodes if node.operator in ("conv", "linear")]
    return int(weighted[0].attributes["out"]), int(weighted[-1].attributes["in"])


def load_table(path: Path | str) -> LatencyTable:
    """Read the output of `slimdeploy lut`; raises SlimdeployError if it is missing, damaged or another kind
    of file.
    """
    return table_of(results.read(Path(path), KIND), Path(path))


def table_of(document: dict[str, Any], path: Path) -> LatencyTable:
    """The table in a `lut` document from `path`."""
    try:
        device, model = document["device"], document["model"]
        shapes = {str(name): tuple(map(float, values)) for name, values in model["shapes"].items()}
        if model["terms"] != list(TERMS) or any(len(values) != len(TERMS) for values in shapes.values()):
            raise ValueError(f"terms {model['terms']}")
        constant, by_stem, by_classifier = map(float, model["rest"])
        return LatencyTable(
            device, int(device["batch"]), int(model["granularity"]), model["cache_mb"], shapes,
            (constant, by_stem, by_classifier), float(model["layer_ms"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SlimdeployError(f"{path}: damaged latency table ({error!r}): measure it again") from error
