"""The reference lists what the library offers. `make docs` fails for a listed name that doesn't exist."""

from __future__ import annotations

import re
from pathlib import Path

import slimdeploy
from slimdeploy.toolchain.library import sparsity

PAGES = (Path(slimdeploy.__file__).parent / "docs" / "reference").glob("*.md")
LISTED = {name for page in PAGES for name in re.findall(r"^::: slimdeploy\.(\S+)", page.read_text(), re.M)}


def test_every_public_name_is_in_the_reference() -> None:
    public = {*slimdeploy.__all__} - {"__version__", "sparsity"}
    assert len(public) > 20
    assert public <= LISTED
    assert {f"sparsity.{name}" for name in sparsity.__all__} <= LISTED
