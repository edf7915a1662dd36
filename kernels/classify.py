"""Kernels after the network: the most probable classes, or the number of correct predictions."""

from __future__ import annotations

import numpy as np

from slimdeploy.kernels import compile
from slimdeploy.toolchain.checks import check_range
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.device import Buffer, Device, Stream

MAX_THREADS = 256
TOPK = np.dtype(
    [("logits", "<u8"), ("probabilities", "<u8"), ("indices", "<u8"), ("classes", "<i4"), ("k", "<i4")],
    align=True,
)
ACCURACY = np.dtype(
    [("logits", "<u8"), ("labels", "<u8"), ("correct", "<u8"), ("classes", "<i4")], align=True
)


class TopK:
    """Softmax and the k most probable classes, fused (topk.cu). NaN logits give NaN probabilities."""

    def __init__(self, device: Device, *, classes: int, k: int, precision: str = "fp32") -> None:
        if not 1 <= k <= classes:
            raise SlimdeployError(f"the best {k} of {classes} classes: k must be 1 to {classes}")
        self._device, self.classes, self.k = device, classes, k
        self._item_bytes = _item_bytes(precision)
        self._kernel = compile.kernel(device, "topk", f"topk_{precision}")

    def queue(
        self, logits: Buffer, probabilities: Buffer, indices: Buffer, batch: int, stream: Stream
    ) -> None:
        """(batch, classes) logits → (batch, k) float32 probabilities, descending, and int32 classes; of equal
        ones the lower class first.
        """
        check_range("batch", batch, 1)
        _check_room(logits, batch * self.classes * self._item_bytes, "logits")
        _check_room(probabilities, batch * self.k * 4, "probabilities")
        _check_room(indices, batch * self.k * 4, "classes")
        parameters = np.array(
            (logits.address, probabilities.address, indices.address, self.classes, self.k), TOPK
        )
        self._device.launch(self._kernel, (batch, 1, 1), (threads(self.classes), 1, 1), parameters, stream)

    def bytes_moved(self, batch: int) -> int:
        """Minimum traffic: logits read once, results written once."""
        return batch * (self.classes * self._item_bytes + self.k * 8)


class Accuracy:
    """Counts the images whose label has the largest logit (accuracy.cu)."""

    def __init__(self, device: Device, *, classes: int, precision: str = "fp32") -> None:
        self._device, self.classes = device, classes
        self._item_bytes = _item_bytes(precision)
        self._kernel = compile.kernel(device, "accuracy", f"accuracy_{precision}")

    def queue(self, logits: Buffer, labels: Buffer, correct: Buffer, batch: int, stream: Stream) -> None:
        """Add to `correct`, one uint32 initialised by the caller, the number of images whose (batch, classes)
        logits agree with the (batch,) int32 `labels`.
        """
        check_range("batch", batch, 1)
        _check_room(logits, batch * self.classes * self._item_bytes, "logits")
        _check_room(labels, batch * 4, "labels")
        _check_room(correct, 4, "the count")
        parameters = np.array((logits.address, labels.address, correct.address, self.classes), ACCURACY)
        self._device.launch(self._kernel, (batch, 1, 1), (threads(self.classes), 1, 1), parameters, stream)

    def bytes_moved(self, batch: int) -> int:
        """Minimum traffic: logits and labels read once."""
        return batch * (self.classes * self._item_bytes + 4)


def threads(classes: int) -> int:
    """Threads per block: the smallest power of two from 32 to 256 with one thread per class, if possible."""
    return min(max(1 << (classes - 1).bit_length(), 32), MAX_THREADS)


def _item_bytes(precision: str) -> int:
    if precision not in ("fp32", "fp16"):
        raise SlimdeployError(f"logits are fp32 or fp16, not {precision!r}")
    return 4 if precision == "fp32" else 2


def _check_room(buffer: Buffer, needed: int, what: str) -> None:
    if buffer.nbytes < needed:
        raise SlimdeployError(f"{what} need {needed} bytes; the buffer has {buffer.nbytes}")
