"""Every TensorRT name that the code uses exists in the versions that it uses it with."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from slimdeploy.tests.toolchain.tensorrt_fake import FOLDER, VERSIONS, FakeTensorrt
from slimdeploy.toolchain.export import engine, tensorrt
from slimdeploy.toolchain.export.engine_options import EngineOptions
from slimdeploy.toolchain.runtime import tensorrt as runtime
from slimdeploy.toolchain.runtime import tensorrt_callbacks as callbacks
from slimdeploy.toolchain.runtime.capabilities import TABLE, capabilities, parse_version

EVERYTHING = EngineOptions(
    batch=(2, 2, 2), workspace_mb=64, optimization_level=1, dla=0, version_compatible=True,
    hardware_compatible="ampere+",
)  # fmt: skip


def names_in_source() -> set[str]:
    """`Class.member` of every `trt.Class.member` written in the files that speak to TensorRT."""
    found = set()
    for module in (engine, tensorrt, runtime, callbacks):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                root = node.value.value
                if (isinstance(root, ast.Name) and root.id == "trt") or (
                    isinstance(root, ast.Attribute) and root.attr in ("trt", "_trt")
                ):
                    found.add(f"{node.value.attr}.{node.attr}")
    return found


def use_everything(version: str, models: dict[str, Path], folder: Path) -> set[str]:
    trt = FakeTensorrt(version)
    trt._dla_cores = 1
    for kind in ("fp16", "int8"):
        path = folder / f"{version}-{kind}.engine"
        engine.export_engine(
            trt, models[kind], path, EVERYTHING, device=trt._device, progress=lambda *step: None
        )
        runtime.load(trt, path, trt._device, graphs=True).layer_ms(2)
        runtime.load(trt, path, trt._device, graphs=False)
    return trt._used


def test_all_names_are_used_and_every_version_has_its_own(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLIMDEPLOY_CACHE", str(tmp_path))
    used: set[str] = set()
    for version in VERSIONS:
        used |= use_everything(version, models, tmp_path)  # the fake refuses what its version lacks
    written = names_in_source()
    assert {"BuilderFlag.TF32", "ILogger.ERROR", "LayerInformationFormat.JSON"} <= written
    unseen = {name for name in written if name not in used and not name.startswith("ILogger.")}
    assert unseen == set(), "names that no test of any version touches"


@pytest.mark.parametrize("version", VERSIONS)
def test_table_agrees_with_the_names_of_the_version(version: str) -> None:
    api, able = json.loads((FOLDER / f"{version}.json").read_text()), capabilities(version)
    flags, config = api["NetworkDefinitionCreationFlag"], api["IBuilderConfig"]
    assert able.explicit_batch_flag <= ("EXPLICIT_BATCH" in flags)
    assert able.strongly_typed == ("STRONGLY_TYPED" in flags)
    assert able.precision_flags == ({"FP16", "INT8"} <= set(api["BuilderFlag"]))
    assert able.builder_levels == ("builder_optimization_level" in config)
    assert able.builder_levels == ("VERSION_COMPATIBLE" in api["BuilderFlag"])
    assert able.same_capability_plans == ("SAME_COMPUTE_CAPABILITY" in api["HardwareCompatibilityLevel"])
    assert able.progress == ("IProgressMonitor" in api)
    assert able.sized_device_memory == ("set_device_memory" in api["IExecutionContext"])
    assert able.sized_device_memory == ("device_memory_size_v2" in api["ICudaEngine"])


def test_every_row_from_8_6_on_is_checked_by_a_version() -> None:
    covered = {max(since for since in TABLE if since <= parse_version(v)[:2]) for v in VERSIONS}
    # 10.12 differs from 10.1 by NVIDIA's word alone (strong typing complete); of 8.5 there are no bindings.
    assert set(TABLE) - covered == {(8, 5), (10, 12)}


def test_copy_of_11_4_is_what_nvidia_s_bindings_hold(tensorrt_cpu: ModuleType) -> None:
    if not tensorrt_cpu.__version__.startswith("11.4.0"):
        pytest.skip(f"TensorRT {tensorrt_cpu.__version__} is installed, the copy is of 11.4.0")
    spec = importlib.util.spec_from_file_location("reduce_tensorrt_api", FOLDER / "reduce.py")
    assert spec is not None
    assert spec.loader is not None
    reduce = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reduce)
    kept = json.loads((FOLDER / "11.4.0.json").read_text())
    assert reduce.reduce(reduce.members_of(tensorrt_cpu)) == kept


def test_fake_refuses_names_and_calls_that_the_version_lacks() -> None:
    trt = FakeTensorrt("11.4.0")
    config = trt.Builder(None).create_builder_config()
    with pytest.raises(AttributeError):
        trt.BuilderFlag.FP16  # noqa: B018
    with pytest.raises(AttributeError, match=r"TensorRT 11.4.0 has no IBuilderConfig.max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(AttributeError, match=r"has no IBuilderConfig.int8_calibrator"):
        config.int8_calibrator  # noqa: B018
    with pytest.raises(AssertionError, match=r"set_timing_cache takes"):
        config.set_timing_cache(None)
    with pytest.raises(AttributeError):
        FakeTensorrt("8.6.1").IProgressMonitor  # noqa: B018
