"""Reads what an ONNX file says of itself, with nothing installed: a device has no `onnx`.

The protobuf wire format is walked directly (protobuf.dev, "Encoding"; the field numbers are those of
onnx.proto3). Weights are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.errors import SlimdeployError

_FLOAT16 = 10  # TensorProto.DataType
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class OnnxFacts:
    """What the build of an engine has to know of an ONNX file."""

    opset: int
    metadata: dict[str, str]
    layers: dict[str, str]
    """Name of each Conv, Gemm and MatMul -> the precision that it asks for: `fp32`, `fp16` or `int8`."""

    half: bool
    """Whether any tensor is FP16, the scales of Q/DQ included."""

    @property
    def quantised(self) -> bool:
        return "int8" in self.layers.values()

    @property
    def precision(self) -> str:
        """What the file calls itself, or else what its layers say: `fp32`, `fp16`, `int8` or `mixed`."""
        if "precision" in self.metadata:
            return self.metadata["precision"]
        asked = set(self.layers.values())
        return asked.pop() if len(asked) == 1 else "mixed" if asked else "fp32"


def read_onnx(path: Path) -> OnnxFacts:
    """Read an ONNX file's opset, metadata and precisions.

    Raises SlimdeployError where the file is missing or isn't ONNX.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error
    return parse_onnx(content, source=str(path))


def parse_onnx(content: bytes, *, source: str) -> OnnxFacts:
    """The same for the content of a file; `source` names it in the error."""
    try:
        return _read_model(memoryview(content))
    except (ValueError, IndexError, TypeError) as error:
        raise SlimdeployError(f"{source} is not an ONNX file, or is damaged") from error


def _read_model(model: memoryview) -> OnnxFacts:
    opset, metadata, graph = 0, {}, None
    for field, value in _fields(model):
        if field == 7:
            graph = value
        elif field == 8:  # opset_import
            entry = dict(_fields(value))
            if not bytes(entry.get(1, b"")):  # the default domain
                opset = entry.get(2, 0)
        elif field == 14:  # metadata_props
            entry = dict(_fields(value))
            metadata[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    if graph is None or not opset:
        raise ValueError("no graph")
    layers, half = _read_graph(graph)
    return OnnxFacts(opset, metadata, layers, half)


def _read_graph(graph: memoryview) -> tuple[dict[str, str], bool]:
    nodes, types = [], {}
    for field, value in _fields(graph):
        if field == 1:
            nodes.append(_Node(value))
        elif field == 5:  # initializer
            tensor = dict(_fields(value))
            types[_text(tensor.get(8, b""))] = tensor.get(2, 0)
    dequantised = {output for node in nodes if node.operator == "DequantizeLinear" for output in node.outputs}
    layers = {}
    for node in nodes:
        if node.operator in _WEIGHTED:
            if node.inputs[0] in dequantised:
                layers[node.name] = "int8"
            else:
                layers[node.name] = "fp16" if types.get(node.inputs[1]) == _FLOAT16 else "fp32"
    return layers, _FLOAT16 in types.values()


class _Node:
    def __init__(self, content: memoryview) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.name = self.operator = ""
        for field, value in _fields(content):
            if field == 1:
                self.inputs.append(_text(value))
            elif field == 2:
                self.outputs.append(_text(value))
            elif field == 3:
                self.name = _text(value)
            elif field == 4:
                self.operator = _text(value)


def _fields(content: memoryview) -> Iterator[tuple[int, Any]]:
    """The fields of a message: number, and an integer or the bytes of a string or of a nested message.

    A damaged file may have the one where the other is expected: TypeError follows, and is caught above.
    """
    value: Any
    position = 0
    while position < len(content):
        key, position = _varint(content, position)
        field, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(content, position)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, position = int.from_bytes(content[position : position + size], "little"), position + size
        elif kind == 2:
            size, position = _varint(content, position)
            value, position = content[position : position + size], position + size
        else:
            raise ValueError(f"wire type {kind}")
        if position > len(content):
            raise ValueError("cut off")
        yield field, value


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


def _text(value: memoryview | bytes) -> str:
    return bytes(value).decode()
