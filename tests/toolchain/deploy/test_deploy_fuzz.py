"""Files from an attacker or a broken disk: hundreds of mutated bundles, checkpoints and ONNX files, thousands
in `make test-machines`.

Each is refused with one line, or it is harmless. Never a traceback, never a write outside the folder it is
given.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slimdeploy.tests.toolchain.deploy.stores import CHANGES
from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy import container
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint, save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.onnx_file import read_onnx
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

FUZZ = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "200")),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
allowed_folder: list[str] = []
outside: list[str] = []


def watch(event: str, arguments: tuple) -> None:
    """An audit hook, as none can be taken off again: it looks only while `allowed_folder` says where to
    write.
    """
    if not allowed_folder or isinstance(arguments[0], int):  # a number: opened by its path before
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in CHANGES) and not str(arguments[0]).startswith(allowed_folder[0]):
        outside.append(f"{event} {arguments[0]}")


sys.addaudithook(watch)


@contextlib.contextmanager
def refused_or_harmless() -> Iterator[Path]:
    """A new folder; the block may raise SlimdeployError of one line, and may write in this folder alone."""
    with tempfile.TemporaryDirectory() as name:
        outside.clear()
        allowed_folder.append(name)
        try:
            yield Path(name)
        except SlimdeployError as error:
            if not str(error) or "\n" in str(error):
                pytest.fail(f"not one line: {error!r}")
        finally:
            allowed_folder.clear()
        assert not outside


# One edit: what, where (a share of the length), how much, and with what.
edits = st.tuples(
    st.sampled_from(["flip", "set", "cut", "insert", "repeat", "end"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 300),
    st.binary(min_size=1, max_size=8),
)
mutations = st.lists(edits, min_size=1, max_size=4)


def mutate(content: bytes, changes: list) -> bytes:
    changed = bytearray(content)
    for kind, where, amount, data in changes:
        place = int(where * len(changed))
        if not changed:
            break
        if kind == "flip":
            changed[place] ^= 1 << (amount % 8)
        elif kind == "set":
            changed[place : place + len(data)] = data
        elif kind == "cut":
            del changed[place : place + amount]
        elif kind == "insert":
            changed[place:place] = data
        elif kind == "repeat":
            changed[place:place] = changed[place : place + amount]
        else:
            del changed[place:]
    return bytes(changed)


@FUZZ
@given(changes=mutations)
def test_mutated_bundles(bundle, changes):
    """A bundle that gets through is the one that was packed, byte for byte."""
    original = bundle.read_bytes()
    changed = mutate(original, changes)
    with refused_or_harmless() as folder:
        path = folder / "x.slim.tar"
        path.write_bytes(changed)
        bundles.unpack(bundles.read_bundle(path), folder / "out")
        assert changed == original


@FUZZ
@given(changes=mutations)
def test_manifests_that_were_edited(bundle, changes):
    """The archive is whole, its manifest says something else."""
    with tarfile.open(bundle) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}
    head = mutate(contents.pop("manifest.json"), changes)
    try:
        names = [entry["path"] for entry in json.loads(head)["files"]]
    except (ValueError, KeyError, TypeError):
        names = list(contents)
    with refused_or_harmless() as folder:
        path = folder / "x.slim.tar"
        with open(path, "wb") as file:
            container.write_member(file, "manifest.json", head)
            for name in names:
                with contextlib.suppress(UnicodeEncodeError, AttributeError, TypeError, ValueError):
                    container.write_member(file, name[:100], contents.get(name, b"evil"))
            file.write(container.END)
        bundles.unpack(bundles.read_bundle(path), folder / "out")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(document: object, path: tuple = ()) -> Iterator[tuple]:
    """The path to every value inside a JSON document."""
    entries = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


def replaced(document: object, where: float, value: object) -> object:
    """The document with one of its values replaced."""
    every = list(places(document))
    *way, last = every[int(where * len(every))]
    changed = json.loads(json.dumps(document))
    inner = changed
    for key in way:
        inner = inner[key]
    inner[last] = value
    return changed


@FUZZ
@given(where=st.floats(0, 1, exclude_max=True), value=json_values)
def test_manifests_with_other_values(bundle, where, value):
    """Well-formed JSON with a value of any kind in any place."""
    original = json.loads(bundles.read_bundle(bundle).content)
    text = json.dumps(replaced(original, where, value))
    with refused_or_harmless():
        bundles.BundleManifest.from_json(text.encode(), "x.slim.tar")


@FUZZ
@given(where=st.floats(0, 1, exclude_max=True), value=json_values)
def test_descriptions_with_other_values(bundle, where, value):
    original = json.loads(bundles.read_bundle(bundle).manifest.info.to_json())
    with refused_or_harmless():
        ModelInfo.from_json(json.dumps(replaced(original, where, value)), "x.onnx")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> bytes:
    spec = build_graph("resnet18", classes=3, channels=[2] * 17)
    info = ModelInfo(spec, Preprocessing(16, (0.5,) * 3, (0.2,) * 3), ("a", "b", "c"))
    path = tmp_path_factory.mktemp("checkpoint") / "net.safetensors"
    save_checkpoint(path, build_network(spec, seed=0), info)
    return path.read_bytes()


@FUZZ
@given(changes=mutations)
def test_mutated_checkpoints(checkpoint, changes):
    with refused_or_harmless() as folder:
        (folder / "x.safetensors").write_bytes(mutate(checkpoint, changes))
        load_checkpoint(folder / "x.safetensors")


@FUZZ
@given(changes=mutations)
def test_checkpoints_with_a_mutated_header(checkpoint, changes):
    """Most of a file is weights: here the edits hit the header alone, and its length stays true."""
    size = int.from_bytes(checkpoint[:8], "little")
    head = mutate(checkpoint[8 : 8 + size], changes)
    with refused_or_harmless() as folder:
        content = len(head).to_bytes(8, "little") + head + checkpoint[8 + size :]
        (folder / "x.safetensors").write_bytes(content)
        load_checkpoint(folder / "x.safetensors")


@pytest.mark.parametrize("width", [10**6, 10**18, 10**400])
def test_checkpoint_that_asks_for_all_memory(checkpoint, tmp_path, width):
    size = int.from_bytes(checkpoint[:8], "little")
    header = json.loads(checkpoint[8 : 8 + size])
    description = json.loads(header["__metadata__"]["slimdeploy"])
    for node in description["network"]["nodes"]:
        wide = {"in": width, "out": width, "channels": width}
        node["attributes"] |= {name: wide[name] for name in wide if name in node["attributes"]}
    description["network"]["nodes"][0]["attributes"]["in"] = 3
    description["class_names"] = ["a"]
    description["network"]["nodes"][-1]["attributes"]["out"] = 1
    header["__metadata__"]["slimdeploy"] = json.dumps(description)
    head = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + checkpoint[8 + size :])
    with pytest.raises(SlimdeployError, match=r"a larger network than it contains|conv1: out is 1000"):
        load_checkpoint(tmp_path / "x.safetensors")


def test_numpy_pickles_are_no_data(bundle, tmp_path):
    """Golden images are bare numbers: a pickled array in their place has the wrong size."""
    content = pickle.dumps(np.zeros(3))
    assert not any(entry.bytes == len(content) for entry in bundles.read_bundle(bundle).manifest.files)


@FUZZ
@given(changes=mutations)
def test_mutated_onnx_files(models, changes):
    """What the scan lets through, onnxruntime loads or refuses; then it also computes."""
    with refused_or_harmless() as folder:
        path = folder / "x.onnx"
        path.write_bytes(mutate(models["fp32"].read_bytes(), changes))
        read_onnx(path)
        with open_session(path, options=SessionOptions(threads=1)) as session:
            channels, height, width = session.input_shape
            if channels * height * width < 1 << 20:
                session.run(np.zeros((1, channels, height, width), np.float32))


@FUZZ
@example(content=b"")
@given(content=st.binary(max_size=200))
def test_any_bytes_are_no_onnx_file(content):
    with refused_or_harmless() as folder:
        (folder / "x.onnx").write_bytes(content)
        read_onnx(folder / "x.onnx")


def test_the_watch_sees_a_write_outside(tmp_path):
    with pytest.raises(AssertionError), refused_or_harmless():
        (tmp_path / "elsewhere").write_text("x")
    shutil.rmtree(tmp_path)
