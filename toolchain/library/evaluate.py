"""`slimdeploy.evaluate`: accuracy and loss of a network or a model file on test images."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from slimdeploy.toolchain.data.dataset import DataOptions, Dataset
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.keywords import takes
from slimdeploy.toolchain.measure.evaluate import EvaluateResult, evaluate_session
from slimdeploy.toolchain.measure.options import EvaluateOptions
from slimdeploy.toolchain.runtime.session import Session, SessionOptions, open_session

if TYPE_CHECKING:
    from torch import nn

    from slimdeploy.toolchain.data.feed import Batch
    from slimdeploy.toolchain.models.checkpoint import Checkpoint


@takes(EvaluateOptions)
def evaluate(
    model: str | Path | Checkpoint | nn.Module,
    *,
    data: str | DataOptions | Dataset | Iterable[Batch] | None = None,
    size: int | None = None,
    options: EvaluateOptions,
) -> EvaluateResult:
    """Accuracy, loss and errors by class of `model` on test images; a network is not changed.

    Args:
        model: A file (checkpoint, ONNX file or engine), a checkpoint, or a module that takes images
            (N, C, size, size) float32 and returns logits (N, classes).
        data: A dataset, or its name as for `--data`, whose test images are used; or batches of images
            (N, C, size, size) float32, normalised, and labels (N,). Default: the data that the network was
            trained on.
        size: Side of the images in pixels. Required for a module with batches.

    Returns:
        Accuracy (0…1), mean cross-entropy, the confusion matrix, the calibration error.

    Raises:
        SlimdeployError: A file that can't be opened, a module that can't be traced, data in another form, or
            data with other classes than the model's.
    """
    data = DataOptions(data) if isinstance(data, str) else data
    if isinstance(model, str | Path):
        if size is not None:
            raise SlimdeployError("`size` is for a module: a file says it itself")
        how = SessionOptions(device=options.device, threads=options.threads)
        with open_session(Path(model), options.backend, how) as session:
            return evaluate_session(session, str(model), data, options)
    with _opened(model, data, size, options) as session:
        assert session.info is not None
        return evaluate_session(session, session.info.graph.arch, data, options)


def _opened(
    network: Checkpoint | nn.Module,
    data: DataOptions | Dataset | Iterable[Batch] | None,
    size: int | None,
    options: EvaluateOptions,
) -> Session:
    """A torch session of a copy of the network."""
    from slimdeploy.toolchain.library.from_module import checkpoint_for
    from slimdeploy.toolchain.runtime.torch import TorchSession
    from slimdeploy.toolchain.runtime.torch_device import torch_device

    if options.backend not in ("auto", "torch"):
        raise SlimdeployError(f"`backend` {options.backend} runs a file, and `model` is a network in torch")
    checkpoint = checkpoint_for(network, data, size=size)
    own = copy.deepcopy(checkpoint.network)
    where = next(own.parameters()).device.type if options.device == "auto" else options.device
    how = SessionOptions(threads=options.threads)
    return TorchSession(own, checkpoint.info, device=torch_device(where), options=how)
