"""Engine files that are moved, damaged, or of another machine: what is refused, and how to rebuild them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from slimdeploy.tests.toolchain.runtime.engines import OPTIONS, build
from slimdeploy.tests.toolchain.tensorrt_fake import FakeTensorrt
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime import tensorrt as runtime
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice
from slimdeploy.toolchain.runtime.engine_record import EngineTarget, differences, read_engine_record

pytestmark = pytest.mark.xdist_group("test_tensorrt_session")  # one worker makes what they share


def test_engine_record_tells_what_was_built(
    models: dict[str, Path], tmp_path: Path, timing_caches: Path
) -> None:
    trt = FakeTensorrt("10.3.0")
    path = build(trt, models["int8"], tmp_path, replace(OPTIONS, optimization_level=5))
    record = read_engine_record(path)
    assert record is not None
    assert record.machine.tensorrt == "10.3.0"
    assert record.parent == {"file": "int8.onnx", "sha256": artifacts.sha256_file(models["int8"])}
    assert (record.precision, record.batch, record.typing) == ("int8", (2, 3, 4), "strong")
    assert record.audit is not None
    assert record.audit["missed"] == []
    assert record.audit["precisions"] == {"int8": 21}
    assert record.rebuild == (
        f"slimdeploy export {models['int8']} --trt --batch 2,3,4 --optimization-level 5 -o {path} --force"
    )
    assert [p.name for p in timing_caches.iterdir()] == ["fake-host-tensorrt-10.3.0.cache"]


def test_timing_cache_is_kept_and_given_back(
    models: dict[str, Path], tmp_path: Path, timing_caches: Path
) -> None:
    trt = FakeTensorrt("10.3.0")
    build(trt, models["fp32"], tmp_path)
    build(trt, models["fp32"], tmp_path)
    build(FakeTensorrt("11.4.0"), models["fp32"], tmp_path)
    kept = {p.name: p.read_bytes() for p in timing_caches.iterdir()}
    assert kept == {
        "fake-host-tensorrt-10.3.0.cache": b"timed;timed;",
        "fake-host-tensorrt-11.4.0.cache": b"timed;",
    }


def test_engine_of_another_version_names_the_difference_and_the_command(
    models: dict[str, Path], tmp_path: Path
) -> None:
    path = build(FakeTensorrt("10.3.0"), models["fp32"], tmp_path)
    other = FakeTensorrt("10.7.0")
    with pytest.raises(SlimdeployError) as caught:
        runtime.load(other, path, other._device, graphs=True)
    assert str(caught.value) == (
        f"{path} was built for TensorRT 10.3.0 (here: 10.7.0); build it here: "
        f"slimdeploy export {models['fp32']} --trt --batch 2,3,4 -o {path} --force"
    )


def test_the_command_is_for_where_the_files_lie_now(models: dict[str, Path], tmp_path: Path) -> None:
    built, moved = tmp_path / "built", tmp_path / "moved to"
    built.mkdir()
    onnx = shutil.copy(models["fp32"], built / "n.onnx")
    build(FakeTensorrt("10.3.0"), onnx, built)
    other = FakeTensorrt("10.7.0")
    built.rename(moved)
    command = f"slimdeploy export '{moved}/n.onnx' --trt --batch 2,3,4 -o '{moved}/m.engine' --force"
    with pytest.raises(SlimdeployError, match=re.escape(f"build it here: {command}")):
        runtime.load(other, moved / "m.engine", other._device, graphs=True)
    (moved / "m.engine").write_bytes(b"cut off")
    with pytest.raises(SlimdeployError, match=re.escape(f"describes: {command}")):
        runtime.load(other, moved / "m.engine", FakeDevice(), graphs=True)


def test_version_compatible_engine_runs_on_a_later_version(
    models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path
) -> None:
    path = build(FakeTensorrt("10.3.0"), models["fp32"], tmp_path, replace(OPTIONS, version_compatible=True))
    other = FakeTensorrt("10.7.0")
    with runtime.load(other, path, other._device, graphs=True) as session:
        assert session.run(small_batch).shape == (9, 4)
    older_major = FakeTensorrt("11.0.0")
    with pytest.raises(SlimdeployError, match=r"TensorRT 10.3.0 \(here: 11.0.0\)"):
        runtime.load(older_major, path, older_major._device, graphs=True)


@pytest.mark.parametrize(
    ("level", "gpu", "capability", "loads"),
    [
        (None, "Orin", "8.7", True),
        (None, "A100", "8.0", False),
        (None, "Other Orin", "8.7", False),
        ("same-capability", "Other Orin", "8.7", True),
        ("same-capability", "A100", "8.0", False),
        ("ampere+", "Thor", "11.0", True),
        ("ampere+", "T4", "7.5", False),
    ],
)
def test_another_gpu_needs_a_compatible_plan(
    level: str | None, gpu: str, capability: str, loads: bool, models: dict[str, Path], tmp_path: Path
) -> None:
    record = read_engine_record(build(FakeTensorrt("10.3.0"), models["fp32"], tmp_path))
    assert record is not None
    built = replace(record, machine=EngineTarget("10.3.0", "Orin", "8.7"), hardware_compatible=level)
    found = differences(built, EngineTarget("10.3.0", gpu, capability))
    assert found == ([] if loads else [f"Orin, compute capability 8.7 (here: {gpu}, {capability})"])


def test_damaged_files_are_named(models: dict[str, Path], tmp_path: Path) -> None:
    trt = FakeTensorrt("10.3.0")
    path = build(trt, models["fp32"], tmp_path)
    with open(path, "ab") as file:
        file.write(b"x")
    with pytest.raises(SlimdeployError, match=r"m.engine is damaged, or not the file that .*json describes"):
        runtime.load(trt, path, trt._device, graphs=True)
    artifacts.sidecar(path).write_text(json.dumps({"file": "m.engine"}))
    with pytest.raises(SlimdeployError, match=r"m.engine.json is not the description of an engine"):
        runtime.load(trt, path, trt._device, graphs=True)


def test_plan_without_an_engine_record_loads_or_tells_how_to_build(
    models: dict[str, Path], small_batch: np.ndarray, tmp_path: Path
) -> None:
    trt = FakeTensorrt("10.3.0")
    path = build(trt, models["fp32"], tmp_path)
    artifacts.sidecar(path).unlink()
    with runtime.load(trt, path, trt._device, graphs=True) as session:
        assert session.info is None
        assert session.precision == "unknown"
        assert session.run(small_batch).shape == (9, 4)
    path.write_bytes(b"something else")
    with pytest.raises(SlimdeployError, match=r"can't load it \(Error Code 1: .*\); build it .*m.onnx --trt"):
        runtime.load(trt, path, FakeDevice(), graphs=True)
