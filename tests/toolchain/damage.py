"""Damage to files of every kind, by a seeded chance."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import helper

from slimdeploy.toolchain.deploy import container

OPERATORS = ["Loop", "ConstantOfShape", "Expand", "Relu", "Conv", "Concat", "Tile"]
VALUES: list[Any] = [None, True, 0, -1, 1e308, 10**30, "", "x", "nan", [], {}, [[]], {"a": 1},
                     float("nan"), "\ud800", 2**63, [1] * 50, "\x1b[31m"]  # fmt: skip


def flip_bytes(content: bytes, chance: random.Random) -> bytes:
    """A few edits anywhere: bits, bytes, parts left out or repeated, the end cut off."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        if not changed:
            break
        place, length = chance.randrange(len(changed)), chance.randint(1, 40)
        kind = chance.choice(["bit", "set", "drop", "repeat", "cut", "insert"])
        if kind == "bit":
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == "set":
            changed[place : place + 4] = chance.randbytes(4)
        elif kind == "drop":
            del changed[place : place + length]
        elif kind == "repeat":
            changed[place:place] = changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = chance.randbytes(length)
        elif chance.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def edit_json(content: bytes, chance: random.Random) -> bytes:
    """Well-formed, with other values in a few places."""
    document = json.loads(content)
    for _ in range(chance.randint(1, 3)):
        inside = [value for value in _containers(document) if value]
        if not inside:
            break
        container = chance.choice(inside)
        key = chance.choice(list(container) if isinstance(container, dict) else range(len(container)))
        if isinstance(container, dict) and chance.random() < 0.2:
            del container[key]
        else:
            container[key] = chance.choice(VALUES)
    return json.dumps(document).encode()


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)):
        yield value
        for member in value.values() if isinstance(value, dict) else value:
            yield from _containers(member)


def edit_onnx(content: bytes, chance: random.Random) -> bytes:
    """A valid protobuf of another network."""
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    for _ in range(chance.randint(1, 2)):
        node, weight = chance.choice(graph.node), chance.choice(graph.initializer)
        number = chance.choice([0, -1, 1, 3, 1000, 2**31, 2**62])
        kind = chance.randrange(11)
        if kind == 0 and node.attribute:
            attribute = chance.choice(node.attribute)
            attribute.CopyFrom(helper.make_attribute(attribute.name, [number] * chance.choice([1, 2, 4])))
        elif kind == 1:
            node.op_type = chance.choice(OPERATORS)
        elif kind == 2 and weight.dims:
            weight.dims[chance.randrange(len(weight.dims))] = number
        elif kind == 3:
            weight.data_type = chance.randrange(25)
        elif kind == 4 and node.input:
            node.input[chance.randrange(len(node.input))] = chance.choice(graph.node).output[0]
        elif kind == 5:
            graph.node.remove(node)
        elif kind == 6:
            dims = chance.choice([graph.input[0], graph.output[0]]).type.tensor_type.shape.dim
            chance.choice(dims).dim_value = number
        elif kind == 7 and weight.raw_data:
            raw = bytearray(weight.raw_data)
            raw[chance.randrange(len(raw))] ^= 0x60
            weight.raw_data = bytes(raw)
        elif kind == 8:
            entry = chance.choice(model.metadata_props)
            if entry.key == "slimdeploy":
                entry.value = edit_json(entry.value.encode(), chance).decode()
            else:
                entry.value = chance.choice(["", "fp64", "\x1b[31m", entry.value * 500])
        elif kind == 9:
            model.opset_import[0].version = chance.choice([0, 1, 7, 99, 2**40])
        else:
            graph.input.append(graph.input[0])
    return model.SerializeToString()


def edit_header(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header, a JSON document, says something else."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if chance.random() < 0.7:
        carried = header["__metadata__"]["slimdeploy"]
        header["__metadata__"]["slimdeploy"] = edit_json(carried.encode(), chance).decode()
        head = json.dumps(header).encode()
    else:
        head = edit_json(content[8 : 8 + size], chance)
    return len(head).to_bytes(8, "little") + head + content[8 + size :]


def edit_toml(content: bytes, chance: random.Random) -> bytes:
    """A recipe with other values."""
    lines = content.decode().splitlines()
    values = ["nan", "-inf", "1e400", "10" * 15, "-1", "0", "''", "'x'", "[]", "[[1]]", "{a=1}", "true",
              "1979-05-27", "'none'", "'auto'", "1000000", "'\\u0000'", '"a\\u0000b"']  # fmt: skip
    for _ in range(chance.randint(1, 2)):
        place = chance.choice([i for i, line in enumerate(lines) if "=" in line])
        lines[place] = f"{lines[place].split('=')[0]}= {chance.choice(values)}"
    return "\n".join(lines).encode()


def edit_manifest(content: bytes, chance: random.Random) -> bytes:
    """A whole bundle whose manifest says something else of the same files."""
    size = int(content[124:135], 8)
    head = edit_json(content[512 : 512 + size], chance)
    rest = content[container.member_bytes(size) :]
    return container.member_header("manifest.json", len(head)) + head + container.padding(len(head)) + rest
