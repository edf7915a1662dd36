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

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny_recipe import recipe_text

import slimdeploy
from slimdeploy.calibrate.classifier import read_classifier
from slimdeploy.calibrate.measure import measured
from slimdeploy.calibrate.options import calibration_data
from slimdeploy.tests.toolchain.damage import (
    edit_header,
    edit_json,
    edit_manifest,
    edit_onnx,
    edit_toml,
    flip_bytes,
)
from slimdeploy.tests.toolchain.report import sweep_example
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.of_model import dataset_for
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
BENCH = Path(slimdeploy.__file__).parent / "benchmarks" / "results" / "torch-pruning.json"

pytestmark = pytest.mark.xdist_group("fuzz")
Mutate = Callable[[bytes, random.Random], bytes]


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
