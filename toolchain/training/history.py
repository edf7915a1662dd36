"""The history of a run beside its checkpoint: JSON lines, and TensorBoard files with γ histograms."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.training.options import EpochRecord


def history_path(output: Path) -> Path:
    """The JSON-lines file of the run that writes `output`."""
    return _beside(output, ".history.jsonl")


def tensorboard_path(output: Path) -> Path:
    """The TensorBoard folder of the run that writes `output`."""
    return _beside(output, ".tensorboard")


def _beside(output: Path, ending: str) -> Path:
    # Remove only this suffix: lr0.1 and lr0.01 are two runs.
    return output.with_name(output.name.removesuffix(".safetensors") + ending)


def write_history(output: Path, history: Sequence[EpochRecord]) -> None:
    """Write all records; the file is complete at any time."""
    lines = "".join(artifacts.json_text(record.to_json()) + "\n" for record in history)
    artifacts.write_bytes(history_path(output), lines.encode())


def read_history(output: Path) -> list[EpochRecord]:
    """The records of the run that wrote `output`; empty if there are none."""
    path = history_path(output)
    if not path.exists():
        return []
    return [EpochRecord(**json.loads(line)) for line in path.read_text().splitlines()]


class TensorBoardLog:
    """Scalars `train/loss`, `train/acc`, `val/loss`, `val/acc`, … and the histogram of all penalised γ."""

    def __init__(self, output: Path, *, epochs_done: int = 0) -> None:
        import logging

        logging.getLogger("tensorboard").setLevel(logging.ERROR)
        from torch.utils.tensorboard import SummaryWriter

        if not epochs_done:
            for events in tensorboard_path(output).glob("events.out.tfevents.*"):
                events.unlink()
        # Drop what a killed run wrote about the epoch that is repeated now.
        self._excepthook = threading.excepthook
        threading.excepthook = self._without_writer_errors
        self._writer = SummaryWriter(str(tensorboard_path(output)), purge_step=epochs_done + 1)

    def add(self, record: EpochRecord, scales: Sequence[Tensor], *, removed: int = 0) -> None:
        """Write the metrics of an epoch, and the histogram of γ with the `removed` ones as zeros."""
        values = {
            "train/loss": record.train_loss,
            "train/acc": record.train_accuracy,
            "val/loss": record.val_loss,
            "val/acc": record.val_accuracy,
            "lr": record.lr,
            "gamma/zero_share": record.zero_share,
            "gamma/lambda": record.strength,
            "macs": record.macs,
            "images_per_second": record.images_per_second,
        }
        with self._errors_explained():
            for name, value in values.items():
                if value is None:
                    continue
                self._writer.add_scalar(name, value, record.epoch)
            if scales:
                gammas = torch.cat([*(s.detach().float().cpu() for s in scales), torch.zeros(removed)])
                self._writer.add_histogram("gamma", gammas, record.epoch)
            self._writer.flush()

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        # While another error is raised, e.g. a full disk, an error of closing must not replace it.
        quiet = contextlib.suppress(SlimdeployError) if kind else contextlib.nullcontext()
        with quiet, self._errors_explained():
            self._writer.close()
        threading.excepthook = self._excepthook

    def _without_writer_errors(self, error: threading.ExceptHookArgs) -> None:
        """Suppress the traceback of TensorBoard's writer thread, whose errors `add` raises too."""
        if not (
            isinstance(error.exc_value, OSError) and type(error.thread).__module__.startswith("tensorboard")
        ):
            self._excepthook(error)

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SlimdeployError(f"cannot write {self._writer.log_dir}: {error.strerror}") from error
