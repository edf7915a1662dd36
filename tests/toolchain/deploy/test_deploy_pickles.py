"""A pickle in the place of a checkpoint: it is refused, and what it holds isn't run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.runtime.session import open_session


class Evil:
    """What a pickle can do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def zipped_pickle(path: Path, evil: Evil) -> None:
    torch.save({"state_dict": evil}, path)


def bare_pickle(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps(evil))


def disguised_pickle(path: Path, evil: Evil) -> None:
    """A pickle behind the length of a safetensors header."""
    content = pickle.dumps(evil)
    path.write_bytes(len(content).to_bytes(8, "little") + content)


@pytest.mark.parametrize("write", [zipped_pickle, bare_pickle, disguised_pickle])
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_checkpoint_that_is_a_pickle(tmp_path, write: Callable[[Path, Evil], None], ending):
    path = tmp_path / f"net{ending}"
    write(path, Evil(tmp_path / "evil"))
    disguised = write is disguised_pickle
    said = "is not a safetensors file" if disguised else "is a PyTorch file, not a checkpoint"
    with pytest.raises(SlimdeployError, match=said):
        load_checkpoint(path)
    with pytest.raises(SlimdeployError):
        open_session(path)
    assert not (tmp_path / "evil").exists()
