"""Path options, each an input or an output of a command. No output may be the same file as another path."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from slimdeploy.toolchain.errors import SlimdeployError


class InputPath(click.ParamType):
    """A file or folder that the command reads. `~` is expanded, including in `--option=~/file`."""

    name = "path"

    def __init__(self, *beside: str, text: bool = False) -> None:
        """`beside`: suffixes of files that belong to it, e.g. `.json` for a sidecar. `text`: pass it on as a
        string.
        """
        self.beside, self._text = beside, text

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not str(value):
            self.fail("an empty path", param, ctx)
        path = Path(value).expanduser()
        try:
            str(path).encode()
        except UnicodeEncodeError:
            how = "rename it" if sys.getfilesystemencoding() == "utf-8" else "set LC_ALL=C.UTF-8"
            self.fail(f"{os.fsencode(path)!r} cannot be read as a UTF-8 name: {how}", param, ctx)
        return str(path) if self._text else path


class OutputPath(InputPath):
    """A file that the command writes."""


class OutputFolder(OutputPath):
    """A folder that the command writes into."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if os.path.exists(path) and not os.path.isdir(path):
            self.fail(f"{path} is a file, not a folder", param, ctx)
        return path


def check_paths(context: click.Context) -> None:
    """Raises SlimdeployError if the command would overwrite one of its inputs, or write two outputs to one
    file.
    """
    check_apart(_given(context))


def check_apart(paths: Iterable[tuple[str, Path | None, InputPath]]) -> None:
    """The same for `paths`, each with its name in errors and its kind; those that are None don't count."""
    given = [(name, path, kind) for name, path, kind in paths if path is not None]
    for i, (name, path, kind) in enumerate(given):
        for other_name, other_path, other_kind in given[:i]:
            if not isinstance(kind, OutputPath) and not isinstance(other_kind, OutputPath):
                continue
            both = _files(path, kind) & _files(other_path, other_kind)
            if both:
                raise SlimdeployError(
                    f"{name} {path} and {other_name} {other_path} are the same file, or one belongs to "
                    "the other: choose another path"
                )


@contextlib.contextmanager
def outputs_alone(context: click.Context) -> Iterator[None]:
    """Lock every output file of the command: if two commands would write the same file, the second one raises
    SlimdeployError. An output folder isn't locked here, even if it doesn't exist yet: a run locks its own,
    and sweeps share theirs.
    """
    from slimdeploy.toolchain.locks import exclusive  # brings rich, which --help doesn't need

    outputs = {path: kind for _, path, kind in _given(context) if isinstance(kind, OutputPath)}
    with contextlib.ExitStack() as stack:
        for path, kind in sorted(outputs.items()):
            if path.is_dir():
                continue
            stack.enter_context(_folder(path.parent))
            if not isinstance(kind, OutputFolder):
                stack.enter_context(exclusive(path, str(path)))
        yield


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Create `folder` for a lock in it; it is removed at the end if empty. Raises SlimdeployError if it can't
    be created: now, before hours of work for an output that can't be written.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise SlimdeployError(f"{folder} is a file, not a folder") from None
    except OSError as error:
        raise SlimdeployError(f"cannot create the folder {folder}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for one in missing:
                one.rmdir()


def _given(context: click.Context) -> Iterator[tuple[str, Path, InputPath]]:
    for param in context.command.params:
        kind, value = param.type, context.params.get(param.name or "")
        if isinstance(kind, InputPath) and value is not None:
            name = param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name
            for path in value if isinstance(value, tuple) else (value,):
                yield name, Path(path), kind


def _files(path: Path, kind: InputPath) -> set[object]:
    """Identities of a file and of those that belong to it: the path, and the inode if it exists."""
    found: set[object] = set()
    for one in (str(path), *(f"{path}{ending}" for ending in kind.beside)):
        found.add(os.path.realpath(one))
        if os.path.exists(one):
            status = os.stat(one)
            found.add((status.st_dev, status.st_ino))
    return found
