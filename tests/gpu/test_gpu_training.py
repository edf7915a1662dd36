"""Training on an NVIDIA GPU: compiled as well as not, and without waiting for it in a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import PREPROCESSING, learnable_split

from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.training.loop import TrainingData, fit
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions
from slimdeploy.toolchain.training.step import TrainingStep

pytestmark = pytest.mark.gpu

DATA = TrainingData(learnable_split(20), learnable_split(6, seed=1), PREPROCESSING)
OPTIONS = TrainOptions(epochs=3, batch_size=16, lr=0.05, sparsity=1e-2, crop_pad=1, precision="fp32")


@pytest.fixture(autouse=True)
def exact() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA GPU")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _fit(output: Path, options: TrainOptions, device: str) -> list[EpochRecord]:
    network = build_network(build_graph("tiny", stem="cifar", classes=3), seed=0)
    return fit(network, DATA, options, output=output, device=device, setup={})[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_it_trains_as_on_the_cpu(tmp_path: Path, compiled: bool) -> None:
    expected = _fit(tmp_path / "cpu", OPTIONS, "cpu")
    found = _fit(tmp_path / "cuda", replace(OPTIONS, compile=compiled), "cuda")
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.train_loss == pytest.approx(theirs.train_loss, abs=1e-2)
        assert mine.val_loss == pytest.approx(theirs.val_loss, abs=5e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    step = TrainingStep.__call__

    def watched(self, *arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(TrainingStep, "__call__", watched)
    _fit(tmp_path / "x", replace(OPTIONS, precision=precision), "cuda")
