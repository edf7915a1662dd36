"""Bundles that lie, lead out, blow up or are damaged: refused in one line, and nothing written elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import onnx
import pytest

from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy import bundle_manifest as manifest
from slimdeploy.toolchain.deploy import container
from slimdeploy.toolchain.errors import SlimdeployError


def unpack(path: Path, folder: Path) -> manifest.BundleManifest:
    found = bundles.read_bundle(path)
    bundles.unpack(found, folder)
    return found.manifest


def rewrite(path: Path, target: Path, change) -> Path:
    """A bundle that is whole in itself, after `change(document, contents)` edited its manifest and files."""
    with tarfile.open(path) as archive:
        contents = {member.name: archive.extractfile(member).read() for member in archive}
    document = json.loads(contents.pop("manifest.json"))
    change(document, contents)
    with open(target, "wb") as file:
        container.write_member(file, "manifest.json", json.dumps(document).encode())
        for entry in document["files"]:
            container.write_member(file, entry["path"], contents[entry["path"]])
        file.write(container.END)
    return target


def put(document: dict, contents: dict, path: str, content: bytes) -> None:
    """Replace or add a file, with the right size and hash."""
    contents[path] = content
    entry = {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    document["files"] = [e for e in document["files"] if e["path"] != path] + [entry]


def test_flipped_bit_in_each_file(bundle, tmp_path):
    """One bit of every file, of every header and of the padding: each is refused."""
    content = bundle.read_bytes()
    with tarfile.open(bundle) as archive:
        members = archive.getmembers()
    places = [
        place
        for m in members
        for place in (m.offset + 3, m.offset + 150, m.offset_data, m.offset_data + m.size // 2)
    ]
    places += [m.offset_data + m.size for m in members if m.size % 512] + [len(content) - 1]
    for i, place in enumerate(places):
        changed = bytearray(content)
        changed[place] ^= 1
        broken = tmp_path / "broken.slim.tar"
        broken.write_bytes(changed)
        with pytest.raises(SlimdeployError, match=r"broken\.slim\.tar"):
            unpack(broken, tmp_path / f"out{i}")


@pytest.mark.parametrize("length", [0, 1, 511, 512, 5000, -1, -513, -1024])
def test_cut_off(bundle, tmp_path, length):
    path = tmp_path / "cut.slim.tar"
    path.write_bytes(bundle.read_bytes()[:length])
    with pytest.raises(SlimdeployError, match="not a complete bundle"):
        bundles.read_bundle(path)


def test_bytes_after_the_end(bundle, tmp_path):
    path = tmp_path / "long.slim.tar"
    path.write_bytes(bundle.read_bytes() + b"x")
    with pytest.raises(SlimdeployError, match="not a complete bundle"):
        bundles.read_bundle(path)


def set_path(path):
    return lambda document, contents: put(document, contents, path, b"evil")


def lie(**values):
    return lambda document, contents: document.update(values)


def edit_file(**values):
    return lambda document, contents: document["files"][0].update(values)


def info(**values):
    return lambda document, contents: document["info"].update(values)


def preprocessing(**values):
    return lambda document, contents: document["info"]["preprocessing"].update(values)


def huge(document, contents):
    contents[document["files"][0]["path"]] = b""
    document["files"][0]["bytes"] = 3 << 30


ATTACKS = {
    "parent": (set_path("../evil"), "not a path inside"),
    "parent inside": (set_path("models/../../evil"), "not a path inside"),
    "absolute": (set_path("/etc/evil"), "not a path inside"),
    "home": (set_path("~/evil"), "not a path inside"),
    "dot": (set_path("./evil"), "not a path inside"),
    "hidden": (set_path(".bashrc"), "not a path inside"),
    "backslash": (set_path("models\\evil"), "not a path inside"),
    "null": (set_path("models/evil\0"), "not a path inside"),
    "newline": (set_path("models/evil\n"), "not a path inside"),
    "extra file": (set_path("models/evil.so"), "not part of a bundle"),
    "twice": (lambda d, c: d["files"].append(d["files"][0]), "listed twice"),
    "many files": (lambda d, c: [put(d, c, f"models/{i}", b"") for i in range(100)], "files; maximum"),
    "huge file": (huge, "maximum"),
    "negative size": (edit_file(bytes=-512), "a non-negative integer"),
    "size as text": (edit_file(bytes="12"), "a non-negative integer"),
    "size as true": (edit_file(bytes=True), "a non-negative integer"),
    "no hash": (edit_file(sha256="0" * 63), "not a SHA-256"),
    "wrong hash": (edit_file(sha256="0" * 64), "differs from its SHA-256"),
    "newer format": (lie(format=99), "format 99"),
    "no format": (lambda d, c: d.pop("format"), "damaged"),
    "no models": (lie(variants=[]), "at least one model"),
    "unknown precision": (lambda d, c: d["variants"][0].update(precision="fp4"), "precision 'fp4'"),
    "unhashable precision": (lambda d, c: d["variants"][0].update(precision=[]), "precision"),
    "accuracy of 2": (lambda d, c: d["variants"][0].update(accuracy=2), "2 is not an accuracy"),
    "model not there": (lambda d, c: d["variants"][0].update(precision="fp16"), "fp16.f32 is missing"),
    "name with a path": (lie(name="../../x"), "not a bundle name"),
    "more golden images": (lie(golden_images=7), "golden/fp32.f32 has|golden/images.u8 has"),
    "no golden images": (lie(golden_images=0), "at least one golden image"),
    "a million images": (lie(golden_images=10**30), "golden/.* has"),
    "huge images": (preprocessing(size=10**9), "size must be 1 to 4096 pixels"),
    "other classes": (info(class_names=["a", "b", "c", "d"]), "class names differs from"),
    "other mean": (preprocessing(mean=[0, 0, 0]), "preprocessing differs from"),
    "too few classes": (info(class_names=["a"]), "4 classes, but 1"),
    "infinite size": (preprocessing(size=float("inf")), "damaged|size"),
    "model that is none": (lambda d, c: put(d, c, "models/fp32.onnx", b"x" * 99), "not an ONNX file"),
    "empty model": (lambda d, c: put(d, c, "models/fp32.onnx", b""), "not an ONNX file"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(bundle, tmp_path, name):
    change, message = ATTACKS[name]
    broken = rewrite(bundle, tmp_path / "broken.slim.tar", change)
    (tmp_path / "target").mkdir()
    with pytest.raises(SlimdeployError, match=message) as caught:
        unpack(broken, tmp_path / "target/out")
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["broken.slim.tar", "target"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices(bundle, tmp_path, kind):
    with tarfile.open(bundle) as archive, tarfile.open(tmp_path / "evil.slim.tar", "w") as made:
        for member in archive:
            content = archive.extractfile(member)
            if member.name == manifest.GOLDEN_IMAGES:
                member = tarfile.TarInfo(member.name)
                member.type, member.linkname = kind, "/etc/passwd"
            made.addfile(member, content)
    with pytest.raises(SlimdeployError, match="not a complete bundle"):
        unpack(tmp_path / "evil.slim.tar", tmp_path / "out")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_compressed_bombs_are_no_bundles(tmp_path, mode):
    with tarfile.open(tmp_path / "bomb.slim.tar", mode) as archive:
        member = tarfile.TarInfo("manifest.json")
        member.size = 16 << 20
        archive.addfile(member, open("/dev/zero", "rb"))  # noqa: SIM115
    with pytest.raises(SlimdeployError, match=r"no manifest\.json at its start"):
        bundles.read_bundle(tmp_path / "bomb.slim.tar")


def test_manifest_that_claims_gigabytes(tmp_path):
    path = tmp_path / "bomb.slim.tar"
    path.write_bytes(container.member_header("manifest.json", 4 << 30) + b"{}")
    with pytest.raises(SlimdeployError, match="maximum"):
        bundles.read_bundle(path)


def test_deeply_nested_manifest(tmp_path):
    path = tmp_path / "deep.slim.tar"
    with open(path, "wb") as file:
        container.write_member(file, "manifest.json", b"[" * 1_000_000)
        file.write(container.END)
    with pytest.raises(SlimdeployError, match="damaged"):
        bundles.read_bundle(path)


def external(where: str, *, hide: str = "initializer"):
    """Make the first weight (or one hidden deeper) lie in the file `where`."""

    def change(document, contents):
        model = onnx.load_from_string(contents["models/fp32.onnx"])
        tensor = model.graph.initializer[0]
        if hide == "attribute":
            tensor = model.graph.node.add(op_type="Constant").attribute.add(name="value").t
        elif hide == "sparse":
            tensor = model.graph.sparse_initializer.add().values
        elif hide == "subgraph":
            tensor = model.graph.node.add(op_type="If").attribute.add(name="x").g.initializer.add()
        elif hide == "function":
            tensor = model.functions.add(name="f").node.add(op_type="Constant").attribute.add(name="v").t
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=where)
        put(document, contents, "models/fp32.onnx", model.SerializeToString())

    return change


@pytest.mark.parametrize("hide", ["initializer", "attribute", "sparse", "subgraph", "function"])
@pytest.mark.parametrize("where", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
def test_external_data(bundle, tmp_path, where, hide):
    broken = rewrite(bundle, tmp_path / "broken.slim.tar", external(where, hide=hide))
    with pytest.raises(SlimdeployError, match="external data"):
        unpack(broken, tmp_path / "out")


def test_unpack_never_follows_or_overwrites(bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SlimdeployError, match="cannot make the folder"):
        unpack(bundle, tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_file_that_changes_while_read(bundle, other_bundle, tmp_path):
    path = tmp_path / "a.slim.tar"
    shutil.copy(bundle, path)
    found = bundles.read_bundle(path)
    shutil.copy(other_bundle, path)
    with pytest.raises(SlimdeployError, match="changed while"):
        bundles.unpack(found, tmp_path / "out")
