"""Bytes moved by the kernels, relative to the bandwidth of the GPU's memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from slimdeploy.kernels import compile
from slimdeploy.kernels.classify import Accuracy, TopK
from slimdeploy.kernels.image_layout import ImageLayout
from slimdeploy.kernels.preprocess import Preprocess
from slimdeploy.toolchain.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from slimdeploy.toolchain.runtime.device import Buffer, Device, Stream

COPY = np.dtype([("from", "<u8"), ("to", "<u8"), ("count", "<i8")], align=True)
COPY_BLOCKS, COPY_THREADS = 4096, 256


@dataclass(frozen=True)
class Bandwidth:
    """GPU time of one kernel. A byte that it reads twice counts once."""

    kernel: str
    batch: int
    nbytes: int
    """Minimum traffic: inputs read once, outputs written once."""
    ms: float
    """Median GPU time of a launch."""
    gb_per_s: float
    """nbytes ÷ ms, in 10⁹ bytes a second."""
    of_copy: float
    """gb_per_s ÷ that of a plain copy that reads and writes the same number of bytes."""


@dataclass(frozen=True)
class Workload:
    """What to measure. The default is a full-HD camera and an ImageNet network."""

    batch: int = 64
    width: int = 1920
    height: int = 1080
    size: int = 224
    classes: int = 1000
    k: int = 5


def measure(device: Device, workload: Workload | None = None, *, launches: int = 30) -> list[Bandwidth]:
    """GPU times of every kernel on uninitialised memory. Data smaller than the L2 cache (all kernels except
    preprocessing) measures the cache.

    Raises SlimdeployError if the device has too little memory or the kernels can't be compiled.
    """
    load = workload or Workload()
    with_memory = _Memory(device)
    try:
        return [
            *(
                _preprocess(device, with_memory, load, kind, precision, launches)
                for kind in ("nv12", "rgb")
                for precision in ("fp32", "fp16")
            ),
            _topk(device, with_memory, load, launches),
            _accuracy(device, with_memory, load, launches),
        ]
    finally:
        with_memory.free()


class _Memory:
    """Buffers that live until the next `renew` or the end."""

    def __init__(self, device: Device) -> None:
        self._device, self._buffers = device, list[Buffer]()

    def renew(self, *sizes: int) -> list[Buffer]:
        self.free()
        for size in sizes:
            self._buffers.append(self._device.allocate(size))
        return self._buffers

    def free(self) -> None:
        while self._buffers:
            self._buffers.pop().free()


def _preprocess(
    device: Device, memory: _Memory, load: Workload, kind: str, precision: str, launches: int
) -> Bandwidth:
    layout = ImageLayout(kind, load.width, load.height)
    preprocessing = Preprocessing(load.size, IMAGENET_MEAN, IMAGENET_STD, (load.size, load.size))
    kernel = Preprocess(device, layout, preprocessing, precision=precision)
    try:
        images, output = memory.renew(layout.stride * load.batch, kernel.output_bytes(load.batch))
        return _report(
            device, f"preprocess {kind} {load.width}×{load.height} → {load.size} {precision}", load.batch,
            kernel.bytes_moved(load.batch), lambda s: kernel.queue(images, output, load.batch, s), launches,
        )  # fmt: skip
    finally:
        kernel.close()


def _topk(device: Device, memory: _Memory, load: Workload, launches: int) -> Bandwidth:
    kernel = TopK(device, classes=load.classes, k=load.k)
    logits, probabilities, indices = memory.renew(
        load.batch * load.classes * 4, load.batch * load.k * 4, load.batch * load.k * 4
    )
    return _report(
        device, f"top {load.k} of {load.classes}", load.batch, kernel.bytes_moved(load.batch),
        lambda s: kernel.queue(logits, probabilities, indices, load.batch, s), launches,
    )  # fmt: skip


def _accuracy(device: Device, memory: _Memory, load: Workload, launches: int) -> Bandwidth:
    kernel = Accuracy(device, classes=load.classes)
    logits, labels, correct = memory.renew(load.batch * load.classes * 4, load.batch * 4, 4)
    return _report(
        device, f"accuracy over {load.classes}", load.batch, kernel.bytes_moved(load.batch),
        lambda s: kernel.queue(logits, labels, correct, load.batch, s), launches,
    )  # fmt: skip


def _report(
    device: Device, name: str, batch: int, nbytes: int, launch: Callable[[Stream], None], launches: int
) -> Bandwidth:
    ms = _median_ms(device, launch, launches)
    rate = nbytes / ms / 1e6
    return Bandwidth(name, batch, nbytes, ms, rate, rate / copy_gb_per_s(device, nbytes, launches=launches))


def copy_gb_per_s(device: Device, nbytes: int, *, launches: int = 30) -> float:
    """Best memory bandwidth in 10⁹ bytes/s: a copy that reads nbytes ÷ 2 and writes as many."""
    count = max(nbytes // 32, 1)
    kernel = Copy(device)
    source, target = device.allocate(count * 16), device.allocate(count * 16)
    try:
        ms = _median_ms(device, lambda s: kernel.queue(source, target, count, s), launches)
    finally:
        source.free()
        target.free()
    return count * 32 / ms / 1e6


class Copy:
    """The plain copy (copy.cu)."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kernel = compile.kernel(device, "copy", "copy")

    def queue(self, source: Buffer, target: Buffer, count: int, stream: Stream) -> None:
        """Queue a copy of `count` × 16 bytes."""
        parameters = np.array((source.address, target.address, count), COPY)
        grid = (min(-(-count // COPY_THREADS), COPY_BLOCKS), 1, 1)
        self._device.launch(self._kernel, grid, (COPY_THREADS, 1, 1), parameters, stream)


def _median_ms(device: Device, launch: Callable[[Stream], None], launches: int) -> float:
    stream = device.stream()
    events = [(device.event(), device.event()) for _ in range(launches)]
    for _ in range(3):
        launch(stream)
    for start, end in events:
        start.record(stream)
        launch(stream)
        end.record(stream)
    stream.synchronize()
    return statistics.median(device.elapsed_ms(start, end) for start, end in events)
