"""Reads what an ONNX file says of itself, with nothing installed: a device has no `onnx`.

The protobuf wire format is walked directly (protobuf.dev, "Encoding"; the field numbers are those of
onnx.proto3). Weights are skipped.

An ONNX file can name other files as the place of its weights, and a runtime opens them. What slimdeploy
writes is self-contained, so a file that points outside itself is refused here, before any runtime sees it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import METADATA_KEY, ModelInfo

_FLOAT16 = 10  # TensorProto.DataType
_WEIGHTED = ("Conv", "Gemm", "MatMul")

# Message -> field number -> message: every way from a model to a tensor (onnx.proto, IR version 10).
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Training": {1: "Graph", 2: "Graph"},
    "Tensor": {},
}
_MAX_DEPTH = 32
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a Tensor


@dataclass(frozen=True)
class OnnxFacts:
    """What a bundle and the build of an engine have to know of an ONNX file."""

    opset: int
    metadata: dict[str, str]
    """The model's `metadata_props`."""
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

    Raises SlimdeployError where the file is missing, isn't ONNX, or points outside itself.
    """
    if path.suffix == ".safetensors" and path.exists():
        raise SlimdeployError(
            f"{path} is a checkpoint, not an ONNX file: slimdeploy export writes one from it"
        )
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return parse_onnx(content, source=str(path))
    except FileNotFoundError:
        raise SlimdeployError(f"no model at {path}") from None
    except OSError as error:
        raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # mmap of nothing
        raise SlimdeployError(f"{path} is not an ONNX file, or is damaged (it is empty)") from error


def parse_onnx(content: bytes | mmap.mmap, *, source: str) -> OnnxFacts:
    """The same for the content of a file; `source` names it in the error."""
    message = _Message(content, 0, len(content))
    try:
        facts, external = _read_model(message), _points_outside(message, "Model", 0)
    except _DamagedError as error:
        raise SlimdeployError(f"{source} is not an ONNX file, or is damaged ({error})") from error
    if external:
        raise SlimdeployError(
            f"{source}: its weights lie in other files (external data); slimdeploy export writes all into one"
        )
    return facts


def carried_info(path: Path, facts: OnnxFacts) -> ModelInfo:
    """The description of the network in an ONNX file; raises SlimdeployError where slimdeploy didn't write
    it.
    """
    if METADATA_KEY not in facts.metadata:
        raise SlimdeployError(
            f"{path}: it doesn't say its classes and preprocessing; write it with slimdeploy export"
        )
    return ModelInfo.from_json(facts.metadata[METADATA_KEY], str(path))


class _DamagedError(Exception):
    """The bytes are no ONNX model."""


@dataclass(frozen=True)
class _Message:
    """A message, or the bytes of a string: a part of the content, by its place (a mapped file mustn't be
    sliced into views that outlive it).
    """

    content: bytes | mmap.mmap = field(repr=False)
    start: int
    end: int

    def fields(self) -> Iterator[tuple[int, int | _Message]]:
        """Number of each field, with its integer, or with the string or message that it holds."""
        position = self.start
        while position < self.end:
            tag, position = self._varint(position)
            number, kind = tag >> 3, tag & 7
            value: int | _Message
            if kind == 0:
                value, position = self._varint(position)
            elif kind == 2:
                length, start = self._varint(position)
                position = start + length
                value = _Message(self.content, start, position)
            elif kind in (1, 5):
                start, position = position, position + (8 if kind == 1 else 4)
                value = int.from_bytes(self.content[start:position], "little")
            else:
                raise _DamagedError(f"an unknown field at byte {position}")
            if position > self.end or not number:
                raise _DamagedError(f"a field at byte {position} that doesn't fit")
            yield number, value

    def text(self) -> str:
        try:
            return self.content[self.start : self.end].decode()
        except UnicodeDecodeError:
            raise _DamagedError(f"no text at byte {self.start}") from None

    def _varint(self, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= self.end:
                raise _DamagedError("it ends too early")
            byte = self.content[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _DamagedError(f"a number too long at byte {position}")


def _points_outside(message: _Message, kind: str, depth: int) -> bool:
    """Whether any tensor in a message of `kind` mentions external data, whatever it says of it."""
    if depth > _MAX_DEPTH:
        raise _DamagedError("nested too deep")
    children, found = _CHILDREN[kind], False
    for number, value in message.fields():
        if kind == "Tensor":
            found |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)
        elif number in children:
            found |= _points_outside(_nested(value), children[number], depth + 1)
    return found


def _read_model(model: _Message) -> OnnxFacts:
    opset, metadata, graph = 0, {}, None
    for number, value in model.fields():
        if number == 7:
            graph = _nested(value)
        elif number == 8:  # opset_import
            entry = dict(_nested(value).fields())
            if not _text(entry.get(1)):  # the default domain
                opset = _integer(entry.get(2))
        elif number == 14:  # metadata_props
            entry = dict(_nested(value).fields())
            metadata[_text(entry.get(1))] = _text(entry.get(2))
    if graph is None or not opset:
        raise _DamagedError("it holds no graph")
    layers, half = _read_graph(graph)
    return OnnxFacts(opset, metadata, layers, half)


def _read_graph(graph: _Message) -> tuple[dict[str, str], bool]:
    nodes, types = [], {}
    for number, value in graph.fields():
        if number == 1:
            nodes.append(_Node(_nested(value)))
        elif number == 5:  # initializer
            tensor = dict(_nested(value).fields())
            types[_text(tensor.get(8))] = _integer(tensor.get(2))
    if not nodes:
        raise _DamagedError("its graph is empty")
    dequantised = {output for node in nodes if node.operator == "DequantizeLinear" for output in node.outputs}
    layers = {}
    for node in nodes:
        if node.operator in _WEIGHTED:
            if len(node.inputs) < 2:
                raise _DamagedError(f"a {node.operator} without weights")
            if node.inputs[0] in dequantised:
                layers[node.name] = "int8"
            else:
                layers[node.name] = "fp16" if types.get(node.inputs[1]) == _FLOAT16 else "fp32"
    return layers, _FLOAT16 in types.values()


class _Node:
    def __init__(self, message: _Message) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.name = self.operator = ""
        for number, value in message.fields():
            if number == 1:
                self.inputs.append(_text(value))
            elif number == 2:
                self.outputs.append(_text(value))
            elif number == 3:
                self.name = _text(value)
            elif number == 4:
                self.operator = _text(value)


def _nested(value: int | _Message) -> _Message:
    if isinstance(value, int):
        raise _DamagedError("a number where a message is expected")
    return value


def _text(value: int | _Message | None) -> str:
    return "" if value is None else _nested(value).text()


def _integer(value: int | _Message | None) -> int:
    if isinstance(value, _Message):
        raise _DamagedError("a message where a number is expected")
    return value or 0
