"""Building plans, on a fake of every TensorRT version and on NVIDIA's own bindings without a GPU."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from rich.console import Console

from slimdeploy.tests.toolchain.tensorrt_fake import VERSIONS, FakeTensorrt
from slimdeploy.tests.toolchain.tensorrt_fake_build import DAMAGED, MISMATCHED
from slimdeploy.toolchain import progress
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.engine_options import EngineOptions, parse_batch
from slimdeploy.toolchain.export.tensorrt import build_plan
from slimdeploy.toolchain.runtime.capabilities import TABLE, capabilities
from slimdeploy.toolchain.stages import engine as engine_stage

OPTIONS = EngineOptions(batch=(1, 2, 4))
EVERYTHING = EngineOptions(
    batch=(2, 2, 2),
    workspace_mb=64,
    optimization_level=1,
    dla=0,
    version_compatible=True,
    hardware_compatible="ampere+",
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_every_version_builds_every_precision(version: str, kind: str, models: dict[str, Path]) -> None:
    plan = build_plan(FakeTensorrt(version), models[kind], OPTIONS)
    assert plan.typing == ("flags" if version.startswith("8") else "strong")
    assert plan.facts.precision == kind
    assert (plan.batch, plan.input_shape) == ((1, 2, 4), (3, 16, 16))
    assert plan.timing_cache == b"timed;"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_takes_every_option(version: str, models: dict[str, Path]) -> None:
    trt = FakeTensorrt(version)
    trt._dla_cores = 2
    phases: list[tuple[str, int, int]] = []
    plan = build_plan(
        trt, models["fp32"], EVERYTHING, timing_cache=b"known;", progress=lambda *step: phases.append(step)
    )
    assert plan.timing_cache == b"known;timed;"
    assert {"BuilderFlag.TF32", "BuilderFlag.GPU_FALLBACK", "BuilderFlag.VERSION_COMPATIBLE"} <= trt._used
    if version.startswith("8"):
        assert phases == []
    else:
        assert phases == [("Building engine", done, 2) for done in (0, 1, 2, 2)]


def test_tf32_is_off_unless_asked_for(models: dict[str, Path]) -> None:
    trt = FakeTensorrt("10.13.3")
    assert b'"flags": []' in build_plan(trt, models["fp32"], OPTIONS).content
    assert b'"flags": ["TF32"]' in build_plan(trt, models["fp32"], replace(OPTIONS, tf32=True)).content


def test_version_8_says_in_flags_what_the_file_asks_for(models: dict[str, Path]) -> None:
    trt = FakeTensorrt("8.6.1")
    assert b'"flags": ["FP16"]' in build_plan(trt, models["fp16"], OPTIONS).content
    assert b'"flags": ["INT8"]' in build_plan(trt, models["int8"], OPTIONS).content


@pytest.mark.parametrize(("version", "typing"), [("10.3.0", "flags"), ("10.7.0", "flags"), ("10.13.3", None)])
def test_flags_are_the_fallback_before_strong_typing_was_complete(
    version: str, typing: str | None, models: dict[str, Path]
) -> None:
    trt = FakeTensorrt(version)
    trt._fails_strongly_typed = True
    if typing:
        assert build_plan(trt, models["int8"], OPTIONS).typing == typing
    else:
        with pytest.raises(SlimdeployError, match="Error Code 9: the strongly typed network can't be built"):
            build_plan(trt, models["int8"], OPTIONS)


def test_version_8_is_told_which_opset_to_export(models: dict[str, Path]) -> None:
    with pytest.raises(SlimdeployError, match=r"opset 19; TensorRT 8.6.1 reads up to 17: .* opset 17"):
        build_plan(FakeTensorrt("8.6.1"), models["opset19"], OPTIONS)
    assert build_plan(FakeTensorrt("10.3.0"), models["opset19"], OPTIONS).layers > 0


@pytest.mark.parametrize("cache", [DAMAGED, MISMATCHED])
def test_a_timing_cache_that_does_not_fit_is_left_aside(cache: bytes, models: dict[str, Path]) -> None:
    plan = build_plan(FakeTensorrt("10.13.3"), models["fp32"], OPTIONS, timing_cache=cache)
    assert plan.timing_cache == b"timed;"


def test_progress_becomes_a_bar_on_a_terminal(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "DELAY_S", 0)
    monkeypatch.setattr(progress, "console", Console(file=shown, force_terminal=True, width=120))
    with engine_stage._progress() as report:
        build_plan(FakeTensorrt("10.13.3"), models["fp32"], OPTIONS, progress=report)
        report("Building engine", 1, 2)
        report("Timing [a] kernel", 3, 7)  # a phase within it, with what rich would take for markup
    assert "Building engine" in shown.getvalue()
    assert "Timing [a] kernel 3/7" in shown.getvalue()
    assert "1/2" in shown.getvalue()


def test_ctrl_c_cancels_the_build(models: dict[str, Path]) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(FakeTensorrt("11.4.0"), models["fp32"], OPTIONS, progress=interrupt)


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("11.4.0", EngineOptions(dla=1), "DLA core 1: this device has none"),
        (
            "10.7.0",
            replace(OPTIONS, hardware_compatible="same-capability"),
            "TensorRT 10.7.0 has no plans for all GPUs of one compute capability",
        ),
    ],
)
def test_what_a_version_or_device_lacks_is_named(
    version: str, options: EngineOptions, message: str, models: dict[str, Path]
) -> None:
    with pytest.raises(SlimdeployError, match=message):
        build_plan(FakeTensorrt(version), models["fp32"], options)


def test_a_driver_that_is_too_old_is_named(models: dict[str, Path]) -> None:
    trt = FakeTensorrt("10.3.0")
    trt._cuda_fails = True
    with pytest.raises(SlimdeployError, match=r"can't start .*error: 35\): it may need a newer driver"):
        build_plan(trt, models["fp32"], OPTIONS)


def test_levels_are_refused_on_8_5(monkeypatch: pytest.MonkeyPatch, models: dict[str, Path]) -> None:
    trt = FakeTensorrt("8.6.1")
    trt.__version__ = "8.5.2"
    build_plan(trt, models["fp32"], OPTIONS)
    with pytest.raises(SlimdeployError, match=r"TensorRT 8.5.2 has no optimisation levels"):
        build_plan(trt, models["fp32"], replace(OPTIONS, optimization_level=5))


def test_fixed_batch_needs_no_profile_and_takes_no_other(models: dict[str, Path]) -> None:
    trt = FakeTensorrt("10.13.3")
    assert b'"profile": null' in build_plan(trt, models["batch2"], EngineOptions(batch=(2, 2, 2))).content
    with pytest.raises(SlimdeployError, match="is for batches of 2 only: pass batch 2"):
        build_plan(trt, models["batch2"], OPTIONS)


def test_refused_files_are_named_with_the_parser_s_words(tmp_path: Path, models: dict[str, Path]) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(SlimdeployError, match=r"broken.onnx is not an ONNX file"):
        build_plan(FakeTensorrt("11.4.0"), broken, OPTIONS)
    with pytest.raises(SlimdeployError, match=r"no model at .*missing.onnx"):
        build_plan(FakeTensorrt("11.4.0"), tmp_path / "missing.onnx", OPTIONS)
    model = onnx.load(models["fp32"])
    model.graph.node[0].op_type = "NonMaxSuppression"
    del model.metadata_props[:]  # a file of another tool: of ours, the reader refuses the operator
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(SlimdeployError, match=r"can't parse the file: .*NonMaxSuppression: no importer"):
        build_plan(FakeTensorrt("11.4.0"), tmp_path / "odd.onnx", OPTIONS)


def test_batches_are_parsed_and_checked() -> None:
    assert parse_batch("8") == (8, 8, 8)
    assert parse_batch("1,8,64") == (1, 8, 64)
    for text in ("1,8", "a", "", "1,2,3,4"):
        with pytest.raises(ValueError, match=r"invalid literal|unpack"):
            parse_batch(text)
    with pytest.raises(SlimdeployError, match="1 ≤ MIN ≤ OPT ≤ MAX"):
        EngineOptions(batch=(8, 1, 64))
    with pytest.raises(SlimdeployError, match=r"batch 1,1,65536: expected .* MAX ≤ 65535"):
        EngineOptions(batch=(1, 1, 65536))
    with pytest.raises(SlimdeployError, match="dla: a DLA runs one batch size only, not 1,2,4: pass batch 2"):
        EngineOptions(batch=(1, 2, 4), dla=0)
    with pytest.raises(SlimdeployError, match=r"unknown hardware compatible 'all'; known: ampere\+"):
        EngineOptions(hardware_compatible="all")


def test_capabilities_are_looked_up_by_version() -> None:
    assert capabilities("10.3.0.30") is TABLE[(10, 1)]
    assert capabilities("10.13.3") is TABLE[(10, 13)]
    assert capabilities("12.0.1") is TABLE[(11, 0)], "a newer one is taken for the newest known"
    with pytest.raises(SlimdeployError, match=r"TensorRT 8.4.1 is too old: 8.5 or newer"):
        capabilities("8.4.1")
    with pytest.raises(SlimdeployError, match="'next' is not a TensorRT version"):
        capabilities("next")


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "opset19"])
def test_nvidia_s_own_builder_makes_a_plan(
    kind: str, models: dict[str, Path], tensorrt_cpu: ModuleType
) -> None:
    phases: list[tuple[str, int, int]] = []
    options = EngineOptions(batch=(1, 8, 64), workspace_mb=256, optimization_level=2)
    plan = build_plan(tensorrt_cpu, models[kind], options, progress=lambda *step: phases.append(step))
    assert plan.content
    assert (plan.typing, plan.tensorrt[:2], plan.batch) == ("strong", "11", (1, 8, 64))
    assert plan.input_shape == (3, 16, 16)
    assert plan.timing_cache
    assert phases[0][:2] == ("Building engine", 0)
    assert all(0 <= done <= total for _, done, total in phases)


def test_nvidia_s_own_parser_explains_a_refusal(
    tmp_path: Path, models: dict[str, Path], tensorrt_cpu: ModuleType
) -> None:
    model = onnx.load(models["fp32"])
    model.graph.node[0].op_type = "NoSuchOperator"
    del model.metadata_props[:]  # a file of another tool: of ours, the reader refuses the operator
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(SlimdeployError, match=r"odd.onnx: TensorRT can't parse the file: .*NoSuchOperator"):
        build_plan(tensorrt_cpu, tmp_path / "odd.onnx", OPTIONS)


def test_nvidia_s_own_builder_is_cancelled_by_ctrl_c(
    models: dict[str, Path], tensorrt_cpu: ModuleType
) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_plan(tensorrt_cpu, models["fp32"], OPTIONS, progress=interrupt)
