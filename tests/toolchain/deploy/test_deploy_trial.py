"""A model that nobody signed is run in a process of its own first, with limits."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from slimdeploy.toolchain.deploy import trial
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.onnx_file import read_onnx


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_a_good_model_passes(models: dict[str, Path], kind: str) -> None:
    trial.try_model(models[kind], read_onnx(models[kind]), batch=8)


def test_a_model_that_never_ends_is_stopped(models: dict[str, Path]) -> None:
    with pytest.raises(
        SlimdeployError, match=r"trial run of this unsigned model failed: not done within 0\.05 s$"
    ):
        trial.try_model(models["fp32"], read_onnx(models["fp32"]), batch=8, limit_s=0.05)


def test_a_model_that_takes_all_memory_is_stopped(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "BASE_BYTES", 120 << 20)  # enough for Python and onnxruntime alone
    facts = replace(read_onnx(models["fp32"]), largest=0)
    with pytest.raises(SlimdeployError, match=r"the trial run of this unsigned model failed: "):
        trial.try_model(models["fp32"], facts, batch=4096)


def test_a_crash_is_told_in_one_line(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SlimdeployError, match=r"failed: exit code 1, with \d+ MiB of memory allowed$"):
        trial.try_model(models["fp32"], read_onnx(models["fp32"]), batch=1)


def test_memory_follows_the_model() -> None:
    assert trial.memory_limit(0, replace(FACTS, largest=0), batch=8) == trial.BASE_BYTES
    more = trial.memory_limit(10 << 20, replace(FACTS, largest=1 << 20), batch=8)
    assert more == trial.BASE_BYTES + (80 << 20) + 8 * 4 * 8 * (1 << 20)


FACTS = trial.OnnxFacts(19, {}, {}, half=False)
