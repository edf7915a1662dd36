"""Audit of an engine: its layers by actual precision, fusions, reformats, and layers in another precision
than requested.

Reads the JSON of TensorRT's engine inspector (an engine built with DETAILED verbosity). Up to TensorRT 10 a
tensor has `Format/Datatype` in one string, and the engine a list `Bindings`; from 11 on `Format` and
`Datatype` are separate and the list is called `I/O Tensors`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError

_TYPES = {  # in this order: "BFloat16" contains "Float", "Int8" must not match inside another word
    "bf16": r"bf16|bfloat16",
    "fp8": r"fp8|e4m3",
    "fp4": r"fp4",
    "int4": r"int4",
    "int8": r"int8",
    "fp16": r"fp16|half",
    "fp32": r"fp32|float",
}


@dataclass(frozen=True)
class EngineLayer:
    """A layer of the engine: one kernel, often several fused ONNX nodes."""

    name: str
    kind: str
    """TensorRT's layer type, e.g. `CaskConvolution`."""
    precision: str | None
    """Type of its first input; `tf32` if the kernel rounds to it; None if the inspector doesn't report it."""
    nodes: tuple[str, ...]
    """Names of the ONNX nodes that it computes."""
    reformat: bool
    """Whether it only changes the layout or type of a tensor."""


@dataclass(frozen=True)
class Missed:
    """A node that runs in another precision than requested."""

    node: str
    asked: str
    realised: str


@dataclass(frozen=True)
class Audit:
    """The engine as built."""

    layers: int
    precisions: dict[str, int]
    """Layers (without reformats) by actual precision."""
    fused: int
    """Layers that compute more than one ONNX node."""
    reformats: tuple[str, ...]
    asked: int
    """Nodes that the ONNX file asks for in FP16 or INT8."""
    missed: tuple[Missed, ...]
    unaccounted: tuple[str, ...]
    """Those of them that no layer names: their precision is unknown."""

    @property
    def failed(self) -> str | None:
        """Why the engine differs from the request; None if it doesn't."""
        if self.missed:
            first = self.missed[0]
            return (
                f"{len(self.missed)} layers are not in the requested precision, "
                f"e.g. {first.node}: {first.realised} instead of {first.asked}"
            )
        if self.asked and len(self.unaccounted) == self.asked:
            return f"the inspector reports the precision of none of the {self.asked} FP16 or INT8 layers"
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self),
            "reformats": list(self.reformats),
            "missed": [vars(m) for m in self.missed],
            "unaccounted": list(self.unaccounted),
        }


def read_layers(document: dict[str, Any]) -> list[EngineLayer]:
    """The layers in the inspector's JSON document, in either schema.

    Raises SlimdeployError if it contains only names (built without DETAILED verbosity) or no layers.
    """
    layers = document.get("Layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise SlimdeployError(
            "the engine contains no details of its layers: build it with DETAILED profiling verbosity"
        )
    return [_read_layer(layer) for layer in layers]


def audit(layers: list[EngineLayer], asked: dict[str, str]) -> Audit:
    """Compare the layers of an engine with the precisions of the ONNX file, node by node.

    `asked` is ONNX node -> `fp32`, `fp16` or `int8`. FP32 is never reported as missed: the audit checks that
    FP16 and INT8 are really used.
    """
    realised = {node: layer.precision for layer in layers if not layer.reformat for node in layer.nodes}
    wanted = {node: precision for node, precision in asked.items() if precision != "fp32"}
    missed = [
        Missed(node, precision, got)
        for node, precision in wanted.items()
        if (got := realised.get(node)) is not None and got != precision
    ]
    computing = [layer for layer in layers if not layer.reformat]
    return Audit(
        layers=len(layers),
        precisions=dict(Counter(layer.precision or "unknown" for layer in computing)),
        fused=sum(len(layer.nodes) > 1 for layer in computing),
        reformats=tuple(layer.name for layer in layers if layer.reformat),
        asked=len(wanted),
        missed=tuple(missed),
        unaccounted=tuple(node for node in wanted if realised.get(node) is None),
    )


def _read_layer(layer: dict[str, Any]) -> EngineLayer:
    name, kind = layer.get("Name", ""), layer.get("LayerType", "")
    tensors = [*layer.get("Inputs", []), *layer.get("Outputs", [])]
    precision = _precision(tensors[0]) if tensors else None
    if precision == "fp32" and "tf32" in layer.get("TacticName", ""):
        precision = "tf32"
    # "NoOp" is a reformat without data movement; "Reformat" with origin QDQ is a separate quantisation.
    return EngineLayer(
        name, kind, precision, _nodes(name, layer.get("Metadata", "")), kind in ("Reformat", "NoOp")
    )


def _precision(tensor: dict[str, Any]) -> str | None:
    told = {key.lower(): value for key, value in tensor.items()}
    text = told.get("datatype") or told.get("format/datatype") or ""
    return next((name for name, found in _TYPES.items() if re.search(found, text, re.IGNORECASE)), None)


def _nodes(name: str, metadata: str) -> tuple[str, ...]:
    """ONNX nodes of a layer: from its metadata, or in old versions from its name."""
    return tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata)) or tuple(re.split(r" \+ | \|\| ", name))
