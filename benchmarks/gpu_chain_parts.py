"""The files for a bare machine without network, in parts that are copied one by one."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.wheel import write_wheel
from slimdeploy.toolchain.errors import SlimdeployError

LIST, ARCHIVE = "parts.json", "all.tar.gz"
CHUNK = 1 << 20
WHEELS = (
    "filelock", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "onnxruntime-gpu",
    "tensorrt-cu13-bindings==11.4.0.106", "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0",
    "torch-pruning==1.6.0",
)  # fmt: skip
"""Missing from an image with torch, torchvision, onnx, safetensors, pillow, click and rich."""
SHOPPING_LIST = f"""
To bring along, in parts of 60 MiB (gpu_chain pack cifar10-jpeg wheels -o parts):
  cifar10-jpeg/{{train,test}}/<class>/   the data, 60,000 files
  wheels/                              for that machine's Python, here 3.12 on x86-64:
    pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
      --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels {" ".join(WHEELS)}
  slimdeploy itself                    pack adds its wheel; its tests run from a checkout alone"""


def pack(paths: Sequence[Path], folder: Path, part_bytes: int) -> Iterator[Path]:
    """Write the files, the folders and slimdeploy's wheel into parts in `folder`; yields each part.

    Raises SlimdeployError if two of them have the same name.
    """
    if len({path.resolve().name for path in paths}) < len(paths):
        raise SlimdeployError("two of the paths have the same name: rename one")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="slimdeploy-gpu-chain-") as temporary:
        archive = Path(temporary) / ARCHIVE
        with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
            for path in paths:
                tar.add(path, path.resolve().name)
            wheel = write_wheel(Path(temporary))
            tar.add(wheel, f"wheels/{wheel.name}")
        parts: list[dict[str, str]] = []
        with archive.open("rb") as content:
            while data := content.read(part_bytes):
                part = folder / f"part-{len(parts):03}"
                part.write_bytes(data)
                parts.append({"name": part.name, "sha256": hashlib.sha256(data).hexdigest()})
                yield part
    artifacts.write_json(folder / LIST, {"parts": parts})
    yield folder / LIST


def join(folder: Path, work: Path) -> list[str]:
    """Register the complete parts in `folder`; returns the names of the missing ones. If none is missing,
    everything is unpacked into `work`, and the wheels are installed into its `site`.

    Raises SlimdeployError for a damaged part, or if the wheels can't be installed.
    """
    parts = artifacts.read_json(folder / LIST, "list of parts")["parts"]
    incoming = work / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    for part in parts:
        source = folder / part["name"]
        if source.is_file():
            if artifacts.sha256_file(source) != part["sha256"]:
                raise SlimdeployError(f"{source} differs from its SHA-256 in {LIST}: copy it again")
            shutil.copyfile(source, incoming / part["name"])
    missing = [part["name"] for part in parts if not (incoming / part["name"]).is_file()]
    if missing:
        return missing
    archive = work / ARCHIVE
    with archive.open("wb") as whole:
        for part in parts:
            with (incoming / part["name"]).open("rb") as content:
                shutil.copyfileobj(content, whole, CHUNK)
    with tarfile.open(archive) as tar:
        tar.extractall(work)  # `filter` came with Python 3.11.4; the SHA-256 have been checked
    archive.unlink()
    shutil.rmtree(incoming)
    _install(sorted((work / "wheels").glob("*.whl")), work / "site")
    return []


def _install(wheels: Sequence[Path], site: Path) -> None:
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--upgrade",
    ]
    done = subprocess.run([*pip, "--target", site, *wheels], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SlimdeployError(f"the wheels can't be installed: {done.stderr.strip().splitlines()[-1]}")
