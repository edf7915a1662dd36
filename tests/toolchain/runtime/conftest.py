"""Fixtures of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def timing_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the kernel times that TensorRT measured: the test's own, not the user's."""
    monkeypatch.setenv("SLIMDEPLOY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "timing"
