"""Read and write the files of the stages. Files are written atomically and hashed; existing files are
replaced only with `force`. Text and JSON from users are read here too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from slimdeploy.toolchain import file_kinds, locks
from slimdeploy.toolchain.errors import SlimdeployError, shorten

MAX_TEXT_BYTES = 64 << 20
"""Maximum size of a document from a user; a bench result with all its samples has a few MiB."""
MAX_NESTING = 32
"""Maximum nesting depth of a JSON document."""
_TEMPORARY = ".tmp"


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it into place.

    A killed process leaves the old file or the new one, never a part of it, and its temporary file, which
    `remove_leftovers` removes. Raises SlimdeployError if the folder can't be written or the disk is full; the
    temporary file is then removed.
    """
    path = Path(path)
    _refuse_device(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY)
    except OSError as error:
        raise SlimdeployError(f"cannot write {path}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            locks.mark_in_use(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except OSError as error:
        raise SlimdeployError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):  # gone once renamed
            os.unlink(temporary)


def _refuse_device(path: Path) -> None:
    """Raises SlimdeployError for a device, a pipe or a socket: the rename would replace it by a file."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise SlimdeployError(f"cannot write {path}: it is not a regular file")


def remove_leftovers(path: Path) -> None:
    """Remove temporary files that killed processes left beside `path`. Files that are being written
    are kept.
    """
    if not path.parent.is_dir():
        return
    for entry in os.scandir(path.parent):
        if entry.name.startswith(f".{path.name}.") and is_temporary(entry.name):
            locks.remove_unused(Path(entry.path))


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one of `atomic_file` or `folder_beside`."""
    return name.startswith(".") and name.endswith(_TEMPORARY)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_file(path) as file:
        file.write(content)


def link(source: Path, path: Path) -> None:
    """Make `path` the same file as `source`, or a copy if the file system has no hard links. Artifacts are
    never changed in place, so both stay valid.
    """
    make_folder(path.parent)
    with folder_beside(path) as folder:
        temporary = folder / path.name
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, path)


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, to be renamed to it, or for a file that is.

    `remove_leftovers` removes one that a killed process left.
    """
    folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locks.mark_in_use(descriptor)
        folder.chmod(0o777 & ~umask())
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def cache_folder(kind: str) -> Path:
    """The folder of caches of this kind: in `$SLIMDEPLOY_CACHE`, by default `~/.cache/slimdeploy`. All caches
    may be deleted.
    """
    root = os.environ.get("SLIMDEPLOY_CACHE")
    if not root:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "slimdeploy")
    return Path(root) / kind


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents if they don't exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimdeployError(f"cannot make the folder {folder}: {error.strerror}") from error


def write_json(path: Path | str, document: Any) -> None:
    """Write `document` as indented JSON to `path` atomically."""
    write_bytes(path, (json_text(document, indent=1) + "\n").encode())


def json_text(document: Any, *, indent: int | None = None) -> str:
    """`document` as JSON. NaN and infinity, which JSON lacks, become null."""
    try:
        return json.dumps(document, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(document), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def read_text(path: Path | str, what: str) -> str:
    """The text in `path`, UTF-8 with or without a byte order mark; `what` names the kind of file in errors.

    Raises SlimdeployError if it is missing, too large, or not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise missing(path, what) from None
    except OSError as error:
        raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_TEXT_BYTES:
        raise SlimdeployError(f"{path} is too large for a {what}: maximum {MAX_TEXT_BYTES >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SlimdeployError(
            f"{path} is not a readable {what}: not UTF-8 text (byte {error.start})"
        ) from None


def read_json(path: Path | str, what: str) -> Any:
    """Read JSON from `path`; `what` names the kind of file in errors. NaN and infinity are read as null."""
    return parse_json(read_text(path, what), f"{path} is not a readable {what}")


def parse_json(text: str, problem: str) -> Any:
    """The document in `text`. If it isn't JSON or is nested too deeply, raises SlimdeployError with `problem`
    and the reason.
    """
    try:
        document = json.loads(text, parse_constant=lambda name: None, parse_float=_number)
    except RecursionError:
        raise SlimdeployError(f"{problem}: nested too deeply") from None
    except ValueError as error:
        raise SlimdeployError(f"{problem}: {shorten(error)}") from error
    level, depth = [document], 0
    while level := [item for value in level for item in _members(value)]:
        depth += 1
        if depth > MAX_NESTING:
            raise SlimdeployError(f"{problem}: nested too deeply (maximum {MAX_NESTING} levels)")
    return document


def _number(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None  # 1e999


def _members(value: Any) -> list[Any]:
    """The nested lists and objects of a list or an object."""
    members = value.values() if isinstance(value, dict) else value
    return (
        [one for one in members if isinstance(one, (list, dict))] if isinstance(value, (list, dict)) else []
    )


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


def check_output(
    path: Path | str, *, force: bool = False, name: str = "output", kind: str | None = None
) -> Path:
    """Return `path` as a Path; refuse an existing file unless `force`. Leftovers of killed runs are
    removed. `name` is the parameter's name in errors.

    `kind` is the kind of file that will be written (see `file_kinds`; None for any other). A network or a
    bundle is replaced only by a file of its own kind, even with `force`.
    """
    path = Path(path)
    if path.is_dir():
        raise SlimdeployError(f"{path} is a folder: name a file with `{name}`")
    _refuse_device(path)
    if path.exists():
        if not force:
            raise SlimdeployError(f"{path} exists: pass `force` to replace it, or another `{name}`")
        found = file_kinds.kind_of(path)
        if found not in (None, kind):
            raise SlimdeployError(f"{path} is {found}, which `force` would lose: choose another `{name}`")
    remove_leftovers(path)
    return path


def missing(path: Path | str, kind: str) -> SlimdeployError:
    """The error for a file of this kind that isn't at `path`."""
    if Path(path).is_dir():
        return SlimdeployError(f"{path} is a folder, not a {kind}")
    return SlimdeployError(f"no {kind} at {path}")


def sidecar(path: Path | str) -> Path:
    """The JSON file that describes an ONNX file or an engine: `<file>.json`."""
    path = Path(path)
    return path.with_name(path.name + ".json")


def write_sidecar(path: Path | str, document: dict[str, Any]) -> None:
    """Write the sidecar of the artifact at `path`, with the artifact's hash."""
    write_json(sidecar(path), {"file": Path(path).name, "sha256": sha256_file(path), **document})


def remove_sidecar(path: Path | str) -> None:
    """Call it before the artifact at `path` is replaced: a kill between the two writes then leaves no sidecar
    of another file.
    """
    sidecar(path).unlink(missing_ok=True)


def read_sidecar(path: Path | str) -> dict[str, Any] | None:
    """The sidecar of the artifact at `path`; None if there is none.

    Raises SlimdeployError if it is damaged, or if the artifact's SHA-256 differs from the one in it.
    """
    described = sidecar(path)
    if not described.is_file():
        return None
    document = parse_json(
        read_text(described, "sidecar"), f"{described} is damaged: write {path} again, or remove the sidecar"
    )
    if not isinstance(document, dict) or not isinstance(document.get("sha256"), str):
        raise SlimdeployError(f"{described} is not the sidecar of {path}: it has no sha256; remove it")
    if sha256_file(path) != document["sha256"]:
        raise SlimdeployError(
            f"{path} is damaged or was replaced: its SHA-256 differs from the one in {described}; write it "
            "again, or remove the sidecar if the change is yours"
        )
    return document


def umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
