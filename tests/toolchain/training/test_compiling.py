"""`--compile`, and that no step waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PREPROCESSING, learnable_split
from torch.utils._python_dispatch import TorchDispatchMode

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.networks.operators.convolution_layer import Convolution
from slimdeploy.toolchain.training import compiling, learner, loop
from slimdeploy.toolchain.training.compiling import compile_errors_explained
from slimdeploy.toolchain.training.loop import TrainingData, fit
from slimdeploy.toolchain.training.options import EpochRecord, TrainOptions
from slimdeploy.toolchain.training.step import TrainingStep

DATA = TrainingData(learnable_split(20), learnable_split(6, seed=1), PREPROCESSING)
OPTIONS = TrainOptions(epochs=2, batch_size=16, lr=0.05, sparsity=1e-2, crop_pad=1, precision="fp32")


def _fit(output: Path, options: TrainOptions, device: str = "cpu") -> list[EpochRecord]:
    network = build_network(build_graph("tiny", stem="cifar", classes=3), seed=0)
    return fit(network, DATA, options, output=output, device=device, setup={})[1]


def test_on_the_cpu_it_is_refused_with_the_reason(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    ran = slimdeploy_command("train", "--arch", "tiny", "--stem", "cifar", "--data", f"folder:{image_folder}",
                             "--device", "cpu", "-o", tmp_path / "net", "--compile")  # fmt: skip
    error = "--compile needs CUDA; on the CPU a compiled step is slower: leave it out"
    assert (ran.exit_code, ran.error) == (2, error)


SHRINKING: dict[str, Any] = {"sparsity": "auto:0.4", "sparse_align": 1, "epochs": 6}


@pytest.mark.parametrize(("changes", "programs"), [({}, 1), (SHRINKING, 2)], ids=["plain", "shrinking"])
def test_a_compiled_run_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], programs: int
) -> None:
    """With a backend that traces, and runs what it traced as it is: real code takes minutes to make."""
    traced = []

    def traces(network: torch.nn.Module, **_: Any) -> torch.nn.Module:
        return torch.compile(network, backend=lambda graph, inputs: traced.append(graph) or graph.forward)

    monkeypatch.setattr(learner, "compiled", traces)
    # What is traced has torch's own convolutions; --compile is for CUDA.
    monkeypatch.setattr(Convolution, "forward", torch.nn.Conv2d.forward)
    found = _fit(tmp_path / "compiled", replace(OPTIONS, **changes, compile=True))
    expected = _fit(tmp_path / "eager", replace(OPTIONS, **changes))
    assert len(traced) == programs, "one for all steps of all epochs, and one after each cut"
    for mine, theirs in zip(found, expected, strict=True):
        assert replace(mine, images_per_second=0) == replace(theirs, images_per_second=0)


def test_what_the_compiler_raises_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler\nand a page more")

    monkeypatch.setattr(learner, "compiled", lambda network, **_: torch.compile(network, backend=broken))
    with pytest.raises(
        SlimdeployError, match=r"^compile: torch\.compile fails on this machine \(no C\+\+ compiler\)"
    ) as error:
        _fit(tmp_path / "x", replace(OPTIONS, compile=True))
    assert "\n" not in str(error.value)


def test_other_errors_are_not_the_compilers() -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"), compile_errors_explained():
        raise RuntimeError("a bug")


def test_several_processes_are_refused() -> None:
    with pytest.raises(SlimdeployError, match=r"^compile cannot be used with several processes"):
        compiling.compiled(torch.nn.Identity(), device="cuda", processes=2)


class _NoWaiting(TorchDispatchMode):
    """Fails at what would wait for the device on CUDA: a value that Python looks at."""

    WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(function).startswith(self.WAITING), f"a step waits for {function}"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "cutout": 4}, {"sparsity_step": "subgradient"}])
def test_no_step_waits_for_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    steps = []

    def watched(self: loop._Run, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with _NoWaiting():
            return train(self, index)

    def counted(self: TrainingStep, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(arguments)
        return step(self, *arguments)

    train, step = loop._Run._train, TrainingStep.__call__
    monkeypatch.setattr(loop._Run, "_train", watched)
    monkeypatch.setattr(TrainingStep, "__call__", counted)
    _fit(tmp_path / "x", replace(OPTIONS, **changes))
    assert len(steps) == 6
    with pytest.raises(AssertionError, match="a step waits for"), _NoWaiting():
        torch.ones(1).item()
