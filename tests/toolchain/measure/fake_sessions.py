"""Sessions whose truth is known: they sleep, leak, vary or die as told. Opened in worker processes."""

from __future__ import annotations

import functools
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.subjects import Subject
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import ChannelConfig
from slimdeploy.toolchain.preprocessing import Preprocessing

CLASSES = tuple("abcdefghij")


@dataclass
class FakeSession:
    """Answers the class that each image's first pixel says, `wrong_every`th image wrongly."""

    sleeps_ms: tuple[float, ...] = (1.0,)
    """One of these at random, run by run: a cycle could fall into step with the blocks."""
    moods_ms: tuple[float, ...] = ()
    """For all runs of a process one of these instead: the first process has the first one, and so on."""
    moods_file: Path | None = None
    """Where the processes count themselves."""
    load_mb: int = 0
    """Memory taken when opened, and kept."""
    leak_mb: float = 0.0
    """Memory lost in every run."""
    wrong_every: int = 0
    channels: ChannelConfig | None = None
    described: bool = True
    dies_at_run: int | None = None
    gpu_share: float | None = None
    """GPU time as a share of the sleep; None for a session on the CPU."""
    backend: str = "fake-cpu"
    precision: str = "fp32"
    input_shape: tuple[int, int, int] = (3, 8, 8)
    runs: int = 0
    gpu_ms: float | None = None
    enqueue_ms: float | None = None
    copy_in_ms: float | None = None
    copy_out_ms: float | None = None
    kept: list[np.ndarray] = field(default_factory=list)
    random: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        if self.gpu_share is not None:
            self.device_memory_mb = {"plan": 3.0, "workspace": 5.0}
        if self.moods_file:
            with self.moods_file.open("a") as file:
                self.sleeps_ms = (self.moods_ms[file.tell() % len(self.moods_ms)],)
                file.write(".")
        if self.load_mb:
            self.kept.append(_touched(self.load_mb))

    @property
    def info(self) -> ModelInfo | None:
        if not self.described:
            return None
        spec = build_graph("resnet18", channels=self.channels)
        return ModelInfo(spec, Preprocessing(8, (0.0,) * 3, (1.0,) * 3), CLASSES)

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self.runs == self.dies_at_run:
            os._exit(7)
        milliseconds = self.random.choice(self.sleeps_ms)
        self.runs += 1
        if self.leak_mb:
            self.kept.append(_touched(self.leak_mb))
        time.sleep(milliseconds / 1000)
        if self.gpu_share is not None:
            self.gpu_ms, self.enqueue_ms = milliseconds * self.gpu_share, milliseconds * self.gpu_share / 2
            self.copy_in_ms, self.copy_out_ms = 0.25, 0.125
        answers = np.rint(batch[:, 0, 0, 0] * 255).astype(int) % len(CLASSES)
        if self.wrong_every:
            second = np.rint(batch[:, 0, 0, 1] * 255).astype(int)
            answers = np.where(second % self.wrong_every == 0, (answers + 1) % len(CLASSES), answers)
        return np.eye(len(CLASSES), dtype=np.float32)[answers] * 10

    def close(self) -> None:
        self.kept.clear()

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_fake(**options) -> FakeSession:
    return FakeSession(**options)


def open_refused() -> FakeSession:
    raise SlimdeployError("no model at nowhere.onnx")


def open_broken() -> FakeSession:
    raise RuntimeError("two\nlines")


def open_unavailable() -> FakeSession:
    raise ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")


def fake(name: str, **options) -> Subject:
    """A subject that opens a FakeSession with `options`."""
    return Subject(name, "fake", functools.partial(open_fake, **options))


def _touched(megabytes: float) -> np.ndarray:
    """Memory that is really there: every page written."""
    return np.ones(int(megabytes * 2**20), dtype=np.uint8)
