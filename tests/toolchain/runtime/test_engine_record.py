"""What the record reads off a machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from slimdeploy.tests.toolchain.tensorrt_fake import FakeTensorrt
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime import engine_record
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice


def test_compute_capability_comes_from_the_architecture() -> None:
    device = FakeDevice()
    for arch, capability in (("sm_87", "8.7"), ("sm_120", "12.0"), ("sm_75", "7.5")):
        device.arch = arch
        assert engine_record.engine_target(FakeTensorrt("10.3.0"), device).compute_capability == capability


RECORD = engine_record.EngineRecord(
    parent={"file": "m.onnx", "sha256": "0" * 64},
    machine=engine_record.EngineTarget("10.3.0", "Orin", "8.7"),
    precision="fp16", batch=(1, 8, 8), input_shape=(3, 32, 32), typing="strong", options={},
    version_compatible=False,
    hardware_compatible=None, build_seconds=1.5, plan_bytes=4, audit=None,
    rebuild="slimdeploy export m.onnx --trt -o m.engine --force", model=None,
)  # fmt: skip


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(b"plan")
    engine_record.write_engine_record(tmp_path / "m.engine", RECORD)
    assert engine_record.read_engine_record(tmp_path / "m.engine") == RECORD


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"machine": [1]}, "not an object"),
        ({"machine": {**asdict(RECORD.machine), "gpu": 7}}, "gpu is 7"),
        ({"machine": {**asdict(RECORD.machine), "tensorrt": "ten"}}, "'ten' is not a TensorRT version"),
        ({"machine": {"gpu": "Orin"}}, "it has no 'tensorrt'"),
        ({"parent": {"file": 3, "sha256": ""}}, "parent is {'file': 3, 'sha256': ''}"),
        ({"parent": {}}, "it has no 'file'"),
        ({"batch": [1, 2]}, "batch is [1, 2]"),
        ({"batch": [1, 8, True]}, "batch is [1, 8, True]"),
        ({"version_compatible": "no"}, "version_compatible is 'no'"),
        ({"build_seconds": None}, "build_seconds is None"),
        ({"rebuild": "rm 'x"}, 'rebuild is "rm \'x"'),
        ({"rebuild": "rm"}, "rebuild is 'rm'"),
        ({"rebuild": "rm x y"}, "rebuild is 'rm x y'"),
        ({"model": {"a": 1}}, "model is {'a': 1}"),
        ({"audit": 3}, "audit is 3"),
    ],
)
def test_a_foreign_record_is_one_line(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    plan = tmp_path / "m.engine"
    plan.write_bytes(b"plan")
    artifacts.write_sidecar(plan, {"kind": "engine", **asdict(RECORD), **changed})
    with pytest.raises(SlimdeployError) as caught:
        engine_record.read_engine_record(plan)
    assert str(caught.value) == f"{artifacts.sidecar(plan)} is not the description of an engine ({said})"


@pytest.mark.parametrize("content", [[], 3, None, "x"])
def test_a_record_that_is_no_object(tmp_path: Path, content: Any) -> None:
    (tmp_path / "m.engine").write_bytes(b"plan")
    (tmp_path / "m.engine.json").write_text(json.dumps(content))
    with pytest.raises(SlimdeployError, match=r"is not the description of an engine \(not an object\)"):
        engine_record.read_engine_record(tmp_path / "m.engine")
