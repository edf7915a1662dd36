"""What an ONNX file holds beside its numbers, read without onnx: its metadata, and whether it points
outside itself.

An ONNX file can name other files as the place of its weights, and a runtime opens them. What slimdeploy
writes is self-contained, so a file that does is refused before any runtime sees it. The protobuf encoding
is walked field by field, with the numbers of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import METADATA_KEY, ModelInfo

# Message -> field number -> message: every way from a model to a tensor (onnx.proto, IR version 10).
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 14: "StringEntry", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Training": {1: "Graph", 2: "Graph"},
    "Tensor": {},
    "StringEntry": {},
}
_MAX_DEPTH = 32
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


@dataclass
class OnnxFacts:
    """`metadata` is the model's `metadata_props`."""

    metadata: dict[str, str] = field(default_factory=dict)
    external_data: bool = False
    nodes: int = 0


class _DamagedError(Exception):
    """The bytes are no protobuf message."""


def scan_onnx(path: Path) -> OnnxFacts:
    """Walk the file. Raises SlimdeployError where it is missing, no ONNX model, or points outside itself."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            facts = OnnxFacts()
            with memoryview(content) as view:
                _walk(view, 0, len(view), "Model", facts, 0)
    except FileNotFoundError:
        raise SlimdeployError(f"no model at {path}") from None
    except (OSError, ValueError, _DamagedError) as error:
        raise SlimdeployError(f"{path}: not an ONNX file, or damaged ({error})") from error
    if not facts.nodes:
        raise SlimdeployError(f"{path}: not an ONNX file, or damaged (it holds no graph)")
    if facts.external_data:
        raise SlimdeployError(
            f"{path}: its weights lie in other files (external data); slimdeploy export writes all into one"
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


def _walk(view: memoryview, start: int, end: int, message: str, facts: OnnxFacts, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _DamagedError("nested too deep")
    facts.nodes += message == "Node"
    children = _CHILDREN[message]
    entry: dict[int, bytes] = {}
    for number, low, high in _fields(view, start, end):
        if message == "Tensor":
            # Any mention of external data counts, whatever value it has.
            facts.external_data |= number in (_EXTERNAL_DATA, _DATA_LOCATION) and high > low
        elif message == "StringEntry":
            entry[number] = bytes(view[low:high])
        elif number in children:
            _walk(view, low, high, children[number], facts, depth + 1)
    if message == "StringEntry":
        try:
            facts.metadata[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
        except UnicodeDecodeError:
            raise _DamagedError("metadata that is no text") from None


def _fields(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each field's content between `position` and `end`."""
    while position < end:
        tag, position = _varint(view, position, end)
        kind = tag & 7
        start = position
        if kind == 0:
            value, position = _varint(view, position, end)
            if value == 0:  # the default: as if it weren't there
                continue
        elif kind == 2:
            length, start = _varint(view, position, end)
            position = start + length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise _DamagedError(f"an unknown field at byte {start}")
        if position > end or tag >> 3 == 0:
            raise _DamagedError(f"a field at byte {start} that doesn't fit")
        yield tag >> 3, start, position


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            raise _DamagedError("it ends too early")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _DamagedError(f"a number too long at byte {position}")
