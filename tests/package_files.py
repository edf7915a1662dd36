"""The folders and modules of the package, as they lie in the checkout."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import slimdeploy

ROOT = Path(slimdeploy.__file__).parent


def package_folders(folder: Path = ROOT) -> Iterator[Path]:
    """Those with an `__init__.py`, from `folder` down."""
    if (folder / "__init__.py").is_file():
        yield folder
    for inner in folder.iterdir():  # not rglob: a virtual environment in the checkout is a large tree
        if inner.is_dir() and inner.name not in ("tests", "build") and not inner.name.startswith("."):
            yield from package_folders(inner)


@functools.cache
def modules() -> dict[str, Path]:
    """Import name -> file of every module in the package."""
    found = {}
    for folder in package_folders():
        for file in folder.glob("*.py"):
            parts = ["slimdeploy", *file.relative_to(ROOT).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = file
    return found
