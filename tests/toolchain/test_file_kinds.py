"""A file of another kind than a command takes is told as what it is, with the next step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors.torch
import torch

from slimdeploy.calibrate.classifier import read_classifier
from slimdeploy.toolchain.deploy.bundle import read_bundle
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.file_kinds import BUNDLE, CHECKPOINT, ONNX, PYTORCH, kind_of
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.runtime.onnx_file import read_onnx
from slimdeploy.toolchain.runtime.session import open_session
from slimdeploy.toolchain.training.pretrained import read_weights

READERS: dict[Callable[[Path], Any], str] = {
    load_checkpoint: CHECKPOINT, read_weights: CHECKPOINT, read_onnx: ONNX, read_classifier: ONNX,
    read_bundle: BUNDLE,
}  # fmt: skip


def _written(folder: Path, kind: str) -> Path:
    """A file of `kind` whose name doesn't tell it."""
    path = folder / "given.file"
    if kind == PYTORCH:
        torch.save({"weight": torch.ones(2)}, path)
    elif kind == CHECKPOINT:
        safetensors.torch.save_file({"weight": torch.ones(2)}, path)
    elif kind == ONNX:
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [])), path)
    else:
        path.write_bytes(b"manifest.json".ljust(512, b"\0"))
    return path


@pytest.mark.parametrize("kind", [PYTORCH, CHECKPOINT, ONNX, BUNDLE])
def test_another_kind_of_file_is_told_with_the_next_step(tmp_path: Path, kind: str) -> None:
    path = _written(tmp_path, kind)
    assert kind_of(path) == kind
    for reader, wanted in READERS.items():
        if wanted == kind or (reader, kind) == (read_weights, PYTORCH):
            continue
        with pytest.raises(SlimdeployError) as refused:
            reader(path)
        assert str(refused.value).startswith(f"{path} is {kind}, not {wanted}: "), reader
        assert "slimdeploy " in str(refused.value)
    if kind in (PYTORCH, BUNDLE):
        with pytest.raises(SlimdeployError, match=f"is {kind}, not a model: .*slimdeploy"):
            open_session(path)


def test_pytorchs_legacy_format_and_what_is_no_kind(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert kind_of(tmp_path / "old") == PYTORCH
    for content in (b"", b"\x08", b"hello, world", b"\xff" * 8 + b"{"):
        (tmp_path / "other").write_bytes(content)
        assert kind_of(tmp_path / "other") is None
    assert kind_of(tmp_path / "missing") is None
