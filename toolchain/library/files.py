"""Checkpoints as files: `slimdeploy.load` and `slimdeploy.save`; data by name: `slimdeploy.load_data`."""

from __future__ import annotations

from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, load_dataset
from slimdeploy.toolchain.file_kinds import CHECKPOINT
from slimdeploy.toolchain.library.argument_types import checked
from slimdeploy.toolchain.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


@checked
def load(path: str | Path) -> Checkpoint:
    """Load the checkpoint at `path`; its network is in eval mode on the CPU.

    Args:
        path: A `.safetensors` file that slimdeploy wrote.

    Raises:
        SlimdeployError: The file is missing, isn't a slimdeploy checkpoint, or is damaged.
    """
    return load_checkpoint(Path(path))


@checked
def save(checkpoint: Checkpoint, *, path: str | Path, force: bool = False) -> str:
    """Write `checkpoint` to a file for the commands, atomically. Returns the file's SHA-256.

    Args:
        checkpoint: A result of `load` or `from_module`, or `prune(…).checkpoint`; it is saved with the
            current weights of its network.
        path: The `.safetensors` file to write.
        force: Replace the file if it exists.

    Raises:
        SlimdeployError: The file exists, or can't be written.
    """
    artifacts.check_output(Path(path), force=force, name="path", kind=CHECKPOINT)
    return save_checkpoint(Path(path), checkpoint.network, checkpoint.info)


@checked
def load_data(data: str | DataOptions) -> Dataset:
    """Load the dataset that `--data` refers to.

    Args:
        data: `digits`, `cifar10`, `folder:PATH` (`PATH/{train,val,test}/<class>/…`) or the name of a plugin's
            source. To set `size` (pixels) or the preprocessing, pass DataOptions.

    Raises:
        SlimdeployError: An unknown name, or data that can't be used.
    """
    return load_dataset(DataOptions(data) if isinstance(data, str) else data)
