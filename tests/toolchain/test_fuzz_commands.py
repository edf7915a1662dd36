"""Every command that reads a file, on damaged ones: never an internal error, a hang or a long message.

The examples are seeded: the same ones each time. FUZZ_COMMANDS=N tries N of each kind, FUZZ_SEED others.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny
from onnx import helper
from PIL import Image
from tiny_recipe import recipe_text

import slimdeploy
from slimdeploy.calibrate.classifier import read_classifier
from slimdeploy.calibrate.measure import measured
from slimdeploy.calibrate.options import calibration_data
from slimdeploy.tests.toolchain.report import sweep_example
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.deploy import container
from slimdeploy.toolchain.deploy.bundle import write_bundle
from slimdeploy.toolchain.deploy.samples import noise_images
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.latency.table import TERMS, LatencyTable, shape_of
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.layers import convolutions

EXAMPLES = int(os.environ.get("FUZZ_COMMANDS", "4"))
FIRST_SEED = int(os.environ.get("FUZZ_SEED", "0"))
LIMIT_S = 30
BENCH = Path(slimdeploy.__file__).parent / "benchmarks" / "results" / "int8-bench.json"

pytestmark = pytest.mark.xdist_group("fuzz")
OPERATORS = ["Loop", "ConstantOfShape", "Expand", "Relu", "Conv", "Concat", "Tile"]
Mutate = Callable[[bytes, random.Random], bytes]
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


def edit_lines(content: bytes, chance: random.Random) -> bytes:
    """JSON lines with other values."""
    lines = content.splitlines()
    place = chance.randrange(len(lines))
    lines[place] = edit_json(lines[place], chance)
    return b"\n".join(lines) + b"\n"


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


@dataclass(frozen=True)
class Files:
    """Good files, in a folder that isn't changed."""

    root: Path
    images: Path

    def path(self, name: str) -> Path:
        return self.root / name


@dataclass(frozen=True)
class Case:
    """A command: `{}` is the damaged copy of `file`; of a folder, it is the copy that holds the file."""

    file: str
    command: str
    mutations: tuple[Mutate, ...]


JSON, TENSORS = (edit_json, flip_bytes), (edit_header, flip_bytes)
ONNX = (edit_onnx, edit_onnx, flip_bytes)
CASES = [
    Case("net.onnx", "evaluate {} --data folder:IMAGES --threads 1", ONNX),
    Case("net.onnx", "classify IMAGES/test/red --model {} --threads 1", ONNX),
    Case("net.onnx", "package {} --noise -o OUT/x.slim.tar", ONNX),
    Case("net.onnx", "package GOOD/net.onnx {} --data folder:IMAGES -o OUT/x.slim.tar", ONNX),
    Case("net.onnx", "calibrate {} --data folder:IMAGES --method minmax --images 8 --selection-images 6 "
         "--max-drop 100 --threads 1 -o OUT/int8.onnx", ONNX),
    Case("ranges.json", "calibrate GOOD/net.onnx --data folder:IMAGES --method minmax --images 8 "
         "--selection-images 6 --max-drop 100 --threads 1 --ranges {} -o OUT/int8.onnx", JSON),
    Case("ranges.json", "package GOOD/net.onnx --noise --ranges {} -o OUT/x.slim.tar", JSON),
    Case("net.safetensors", "summary {}", TENSORS),
    Case("net.safetensors", "evaluate {} --data folder:IMAGES", TENSORS),
    Case("net.safetensors", "export {} --data folder:IMAGES -o OUT/x.onnx", TENSORS),
    Case("net.safetensors", "prune {} --ratio 0.3 --align 1 -o OUT/x.safetensors", TENSORS),
    Case("net.safetensors", "finetune {} --data folder:IMAGES --epochs 0 -o OUT/x.safetensors", TENSORS),
    Case("net.safetensors", "train --weights {} --data folder:IMAGES --epochs 0 -o OUT/x.safetensors",
         TENSORS),
    Case("bench.json", "bench --compare {} GOOD/bench.json", JSON),
    Case("bench.json", "bench --compare GOOD/bench.json {} --fail-if accuracy<-5pp", JSON),
    Case("sweep/sweep.json", "report {} -o OUT/r.html", JSON),
    Case("my.toml", "run {} --device cuda -o OUT/run", (edit_toml, flip_bytes)),
    Case("my.toml", "sweep {} --ratio 0.2 --device cuda -o OUT/sweep", (edit_toml, flip_bytes)),
    Case("table.json", "prune GOOD/net.safetensors --latency-ms 1 --no-measure --latency-table {} "
         "-o OUT/x.safetensors", JSON),
    Case("hosts", "deploy GOOD/net.slim.tar --ssh-config /dev/null --hosts {}", (flip_bytes,)),
    Case("net.slim.tar", "deploy {} --root OUT/root --seconds 0 --threads 1", (edit_manifest, flip_bytes)),
    Case("signers", "deploy GOOD/net.slim.tar --root OUT/root --allowed-signers {}", (flip_bytes,)),
    Case("image.png", "classify {} --model GOOD/net.onnx --threads 1", (flip_bytes,)),
    Case("store/active.json", "classify IMAGES/test/red --root {} --threads 1", JSON),
]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Files:
    root = tmp_path_factory.mktemp("good")
    spec = build_graph("tiny", stem="cifar", classes=3)
    info = tiny.model_info(spec)
    tiny.write_checkpoint(root / "net.safetensors")
    model = build_onnx(tiny.random_network(spec), info)
    artifacts.write_bytes(root / "net.onnx", model.SerializeToString())
    write_bundle(root / "net.slim.tar", [root / "net.onnx"], noise_images(root / "net.onnx", 2))
    shutil.copy(BENCH, root / "bench.json")
    results.write(root / "sweep" / "sweep.json", sweep_example.document())
    (root / "my.toml").write_text(recipe_text(image_folder))
    (root / "hosts").write_text("-oProxyCommand=false\nnobody@invalid.invalid  # none\n")
    (root / "signers").write_text("me@example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEu\n")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / "image.png")
    (root / "store" / "versions").mkdir(parents=True)
    (root / "store" / "active.json").write_text('{"format": 1, "installed": 1, "versions": ["0001-net"]}')
    values = tuple({"launch": 1e-3, "product": 1e-6}.get(term, 0.0) for term in TERMS)
    shapes = {shape_of(conv): values for conv in convolutions(spec, 16)}
    device = {"cpu": "a CPU", "threads": 1, "backend": "onnxruntime", "versions": {}}
    table = LatencyTable(device, 1, 1, None, shapes, (0.5, 0.001, 0.0001))
    tiny.write_latency_table(root / "table.json", table, spec, 16)
    data = dataset_for(info, DataOptions(f"folder:{image_folder}"), root)
    chosen = calibration_data(data, images=8, selection_images=6)
    model = root / "net.onnx"
    measured(read_classifier(model), model, chosen, path=root / "ranges.json", threads=1)
    return Files(root, image_folder)


@pytest.fixture(autouse=True)
def limited_time() -> Iterator[None]:
    """A hang fails the test."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"not done within {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, fail)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[:40])
def test_damaged_files_are_refused_in_a_few_lines_or_harmless(
    slimdeploy_command: Callable, files: Files, tmp_path: Path, case: Case
) -> None:
    good = files.path(case.file).read_bytes()
    for seed in range(FIRST_SEED, FIRST_SEED + EXAMPLES):
        chance = random.Random(f"{case.command} {seed}")
        work = tmp_path / str(seed)
        (work / "OUT").mkdir(parents=True)
        damaged = work / case.file
        if damaged.parent != work:
            shutil.copytree(files.path(case.file).parent, damaged.parent)
        damaged.write_bytes(chance.choice(case.mutations)(good, chance))
        given = damaged if damaged.parent == work else damaged.parent
        words = case.command.replace("GOOD", str(files.root)).replace("IMAGES", str(files.images))
        words = words.replace("OUT", str(work / "OUT")).replace("{}", str(given))
        signal.alarm(LIMIT_S)
        ran = slimdeploy_command(*words.split(" "), "--json")
        signal.alarm(0)
        told = f"seed {seed}: {words}\n{ran.err[-3000:]}"
        assert ran.exit_code in (0, 1, 2), told
        assert "internal error" not in ran.err, told
        assert "Traceback" not in ran.err, told
        message = re.split(r"^slimdeploy: ", ran.err, maxsplit=1, flags=re.MULTILINE)
        if ran.exit_code:
            assert len(message) == 2, told
            assert len(message[1].splitlines()) <= 3, told
            assert len(message[1]) < 1000, told
            assert message[1].replace("\n", "").isprintable(), told
        if ran.out:
            assert not re.search(r"\b(NaN|Infinity)\b", json.dumps(json.loads(ran.out))), told
        shutil.rmtree(work)
