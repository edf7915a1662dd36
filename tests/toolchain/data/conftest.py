"""A folder of images, and a cache of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_image_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that a test may change: three images of each class to train on, two to test on."""
    return write_image_folder(tmp_path / "images", train=3, test=2)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; decoded folders appear in the path returned."""
    monkeypatch.setenv("SLIMDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"
