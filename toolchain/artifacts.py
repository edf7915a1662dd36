"""Files that stages hand to each other: written atomically, hashed, never overwritten unasked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from slimdeploy.toolchain.errors import SlimdeployError


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it into place.

    A killed process leaves the old file or the new one, never half of one. Raises SlimdeployError where
    the folder can't be written or the disk is full; the temporary file is removed then.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise SlimdeployError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise SlimdeployError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # gone once renamed
            os.unlink(temporary)


def remove_leftovers(path: Path) -> None:
    """Remove what a killed process left beside `path` while it wrote it."""
    if not path.parent.is_dir():
        return
    for entry in os.scandir(path.parent):
        if entry.name.startswith(f".{path.name}.") and entry.name.endswith(".tmp"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_file(path) as file:
        file.write(content)


def link(source: Path, path: Path) -> None:
    """Make `path` the same file as `source`, or a copy of it where the file system has no hard links. No
    artifact is ever changed in place, so neither can spoil the other.
    """
    with tempfile.TemporaryDirectory(dir=_folder(path), prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, path)


def _folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent


def write_json(path: Path | str, document: Any) -> None:
    """Write `document` as indented JSON to `path` atomically."""
    write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())


def read_json(path: Path | str, what: str) -> Any:
    """Read JSON from `path`; `what` names the kind of file in the error."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise SlimdeployError(f"no {what} at {path}") from None
    except (OSError, ValueError) as error:
        raise SlimdeployError(f"{path} is not a readable {what}: {error}") from error


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


def check_output(path: Path | str, *, force: bool = False) -> Path:
    """Return `path` as a Path; refuse one that exists unless `force`."""
    path = Path(path)
    if path.is_dir():
        raise SlimdeployError(f"{path} is a folder: name a file with --output")
    if path.exists() and not force:
        raise SlimdeployError(f"{path} exists: pass --force to replace it, or another --output")
    return path


def sidecar(path: Path | str) -> Path:
    """The JSON file that describes an ONNX file or an engine: `<file>.json`."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path | str, document: dict[str, Any]) -> None:
    """Describe the artifact at `path` in its sidecar, its own hash included."""
    write_json(sidecar(path), {"file": Path(path).name, "sha256": sha256_file(path), **document})


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
