"""An ONNX graph as plain data, read from the wire format: nodes, constants, image input and output.

Field numbers are those of onnx.proto (IR version 10). Weights are checked in place: their sizes must match
their shapes, and their values must be finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slimdeploy.toolchain.runtime.protobuf import (
    DamagedError,
    Message,
    float32,
    integer,
    integers,
    nested,
    text,
)

FLOAT, FLOAT16, INT64, DOUBLE = 1, 10, 7, 11
# TensorProto.DataType -> bits per element, of the types allowed for a classifier's constants.
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
        17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4}  # fmt: skip
_RAW, _FLOATS, _DOUBLES = 9, 4, 10
_INTEGERS = (5, 7, 11)  # int32_data, int64_data, uint64_data
_DTYPES = {FLOAT: "<f4", FLOAT16: "<f2", DOUBLE: "<f8"}
MAX_NODES = 20_000
_SMALL = 64
"""Maximum number of elements of integer constants whose values are read: shapes, axes and the like."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """Element type and shape of a constant, and its values if they are few integers."""

    type: int
    shape: Shape
    values: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Node:
    """One operator. Attributes are integers, floats, lists of integers, strings and constants."""

    operator: str
    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    has_subgraph: bool = False


@dataclass(frozen=True)
class Graph:
    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    inputs: dict[str, Shape]
    """The graph without the constants; a dimension without a number (the batch) is 0."""
    outputs: dict[str, Shape]


def read_graph(message: Message) -> Graph:
    """Raises DamagedError if the file contains no graph, or its constants are incomplete or not finite."""
    nodes: list[Node] = []
    constants, inputs, outputs = dict[str, Constant](), dict[str, Shape](), dict[str, Shape]()
    for number, value in message.fields():
        if number == 1:
            nodes.append(_read_node(nested(value)))
        elif number == 5:
            name, constant = _read_tensor(nested(value))
            constants[name] = constant
        elif number == 11:
            inputs.update([_read_value(nested(value))])
        elif number == 12:
            outputs.update([_read_value(nested(value))])
    if not nodes:
        raise DamagedError("its graph is empty")
    if len(nodes) > MAX_NODES:
        raise DamagedError(f"{len(nodes)} nodes; maximum {MAX_NODES}")
    inputs = {name: shape for name, shape in inputs.items() if name not in constants}
    return Graph(tuple(nodes), constants, inputs, outputs)


def _read_node(message: Message) -> Node:
    found: dict[int, list[str]] = {1: [], 2: [], 3: [""], 4: [""], 7: [""]}
    attributes: dict[str, Any] = {}
    subgraph = False
    for number, value in message.fields():
        if number in found:
            found[number].append(text(value))
        elif number == 5:
            name, attribute, graph = _read_attribute(nested(value))
            attributes[name], subgraph = attribute, subgraph or graph
    return Node(
        found[4][-1], found[3][-1], found[7][-1], tuple(found[1]), tuple(found[2]), attributes, subgraph
    )


def _read_attribute(message: Message) -> tuple[str, Any, bool]:
    """Its name, its value, and whether it contains a graph."""
    name, ints, graph = "", list[int](), False
    value: Any = None
    for number, entry in message.fields():
        if number == 1:
            name = text(entry)
        elif number == 2:
            value = float32(entry)
        elif number == 3:
            value = integer(entry)
        elif number == 4:
            value = text(entry)
        elif number == 5:
            value = _read_tensor(nested(entry))[1]
        elif number == 8:
            ints += integers(entry)
        graph = graph or number in (6, 11)
    return name, ints or value, graph


def _read_tensor(message: Message) -> tuple[str, Constant]:
    name, kind, dims, values, stored = "", 0, list[int](), list[int](), 0
    raw: Message | None = None
    floats: Message | None = None
    for number, value in message.fields():
        if number == 1:
            dims += integers(value)
        elif number == 2:
            kind = integer(value)
        elif number == 8:
            name = text(value)
        elif number == _RAW:
            raw = nested(value)
        elif number in (_FLOATS, _DOUBLES):
            floats = value if isinstance(value, Message) else None
            stored += len(value) // (4 if number == _FLOATS else 8) if isinstance(value, Message) else 1
        elif number in _INTEGERS:
            if isinstance(value, Message) and len(value) > 10 * _SMALL:
                stored += value.count_integers()
            else:
                values += integers(value)
                stored += len(integers(value))
    if kind not in BITS:
        raise DamagedError(f"constant {name!r} of an unknown element type, {kind}")
    if any(d < 0 for d in dims) or len(dims) > 8:
        raise DamagedError(f"constant {name!r} has an invalid shape {dims}")
    count = math.prod(dims)
    if (len(raw) != -(-count * BITS[kind] // 8)) if raw is not None else (stored != count):
        raise DamagedError(f"constant {name!r} does not have the size of its shape {dims}")
    if kind in _DTYPES:
        _check_finite(name, raw if raw is not None else floats, kind)
    if kind == INT64 and raw is not None and count <= _SMALL:
        values = np.frombuffer(raw.raw(), "<i8").tolist()
    return name, Constant(kind, tuple(dims), tuple(values) if kind == INT64 and count <= _SMALL else None)


def _check_finite(name: str, data: Message | None, kind: int) -> None:
    if data is not None and not np.isfinite(np.frombuffer(data.raw(), _DTYPES[kind])).all():
        raise DamagedError(f"constant {name!r} contains NaN or infinity")


def _read_value(message: Message) -> tuple[str, Shape]:
    """Name and shape of an input or output (ValueInfoProto)."""
    name, shape = "", list[int]()
    for number, value in message.fields():
        if number == 1:
            name = text(value)
        elif number == 2:
            for kind, tensor in nested(value).fields():
                if kind == 1:  # TypeProto.tensor_type
                    shape = _read_shape(nested(tensor))
    return name, tuple(shape)


def _read_shape(tensor_type: Message) -> list[int]:
    dims = []
    for number, value in tensor_type.fields():
        if number == 2:  # TensorShapeProto
            for kind, dim in nested(value).fields():
                if kind == 1:
                    found = dict(nested(dim).fields())
                    dims.append(integer(found.get(1)))
    return dims
