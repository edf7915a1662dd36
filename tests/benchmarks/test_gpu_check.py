"""The GPU check's own logic. What it measures on a GPU is played by the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

from slimdeploy.benchmarks import gpu_check, gpu_models, gpu_targets, gpu_tests
from slimdeploy.benchmarks.gpu_check import Findings
from slimdeploy.benchmarks.gpu_models import Contestant, LeftOut, Models, Pair
from slimdeploy.tests import small_network
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import results

small_checkpoint = small_network.small_checkpoint


def row(contest: str, batch: int, p50: float) -> dict[str, Any]:
    return {"contest": contest, "model": "pruned", "batch": batch, "latency_ms": {"p50": p50}}


def test_targets_are_judged_by_hand_made_figures() -> None:
    rows = [row("tensorrt fp16", 1, 0.3), row("tensorrt fp16", 8, 9.0), row("torch fp16", 1, 9.0)]
    kernel = {"kernel": "preprocess nv12 1920×1080 → 224 fp16", "batch": 64, "of_copy": 0.71}
    comparisons = [
        {"contest": "tensorrt int8", "batch": 256, "realised": 0.79},
        {"contest": "tensorrt int8", "batch": 64, "realised": 0.1},
        {"contest": "torch fp32", "batch": 256, "realised": 0.1},
    ]
    found = gpu_targets.judge(rows, comparisons, [kernel, {**kernel, "kernel": "top 5 of 1000"}], 0.2)
    assert [(round(t["value"], 6), t["at_least"], t["at_most"], t["reached"]) for t in found] == [
        (1.5, None, 1.5, True),
        (0.71, 0.7, None, True),
        (0.79, 0.8, None, False),
    ]
    assert gpu_targets.judge(rows, [], [], None) == []


def test_what_is_missing_is_left_out_and_what_breaks_is_a_failure() -> None:
    found = Findings()

    def missing() -> None:
        raise ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")

    def unequipped() -> None:
        raise LeftOut("no CUDA provider")

    def broken() -> None:
        raise SlimdeployError("the engine is wrong")

    def bug() -> None:
        raise ModuleNotFoundError("No module named 'slimdeploy.nothing'", name="slimdeploy.nothing")

    found.attempt("engine", missing)
    found.attempt("onnxruntime", unequipped)
    found.attempt("parity", broken)
    assert [entry["what"] for entry in found.left_out] == ["engine", "onnxruntime"]
    assert "this needs tensorrt, which is not installed: pip install" in found.left_out[0]["why"]
    assert found.failures == [{"what": "parity", "why": "the engine is wrong"}]
    with pytest.raises(ModuleNotFoundError):
        found.attempt("bug", bug)


def test_junit_report_is_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="gpu.test_a" name="one"/>'
        '<testcase classname="gpu.test_a" name="two"><failure message="no"/></testcase>'
        '<testcase classname="gpu.test_a" name="three"><skipped message="no TensorRT"/></testcase>'
        '<testcase classname="gpu.test_a" name="four"><error message="no"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert gpu_tests.read_report(report) == {
        "passed": 1,
        "failed": ["gpu.test_a::two", "gpu.test_a::four"],
        "skipped": [{"test": "gpu.test_a::three", "why": "no TensorRT"}],
    }


def test_tests_are_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "gpu"
    folder.mkdir(parents=True)
    (folder / "test_sample_of_gpu_check.py").write_text(
        "import pytest\n\ndef test_yes():\n    pass\n\ndef test_no():\n    assert False\n\n"
        "def test_not_here():\n    pytest.skip('no GPU')\n"
    )
    found = gpu_tests.run([folder])
    assert (found["passed"], len(found["failed"]), found["skipped"][0]["why"]) == (1, 1, "no GPU")


def test_every_backend_is_measured_in_its_precisions(tmp_path: Path) -> None:
    models = Models({}, Pair(None, None, "digits", tmp_path), tmp_path)
    names = [contest.name for contest in gpu_models.contests(models, gpu_models.BACKENDS_MEASURED)]
    assert {"torch fp32", "torch-compiled fp16", "torch-graph fp16", "onnxruntime fp16"} < set(names)
    assert {"tensorrt fp32", "tensorrt fp16", "tensorrt int8", "tensorrt-no-graph fp16"} < set(names)
    assert "torch int8" not in names
    some = gpu_models.contests(models, {"torch-graph"})
    assert [contest.name for contest in some] == ["torch-graph fp32", "torch-graph fp16", "torch-graph bf16"]


def test_backends_that_this_machine_lacks_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LeftOut, match="torch sees no CUDA GPU"):
        gpu_models.check_equipped("torch-graph")
    with pytest.raises(LeftOut, match="onnxruntime has no CUDA provider: pip install"):
        gpu_models.check_equipped("onnxruntime")


def test_files_are_made_by_the_commands_a_user_would_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def slimdeploy(*arguments: object) -> None:
        calls.append([str(argument) for argument in arguments])
        Path(str(arguments[-1])).touch()

    monkeypatch.setattr(gpu_models, "slimdeploy", slimdeploy)
    models = gpu_models.prepare(Pair(None, None, "digits", tmp_path), tmp_path)
    assert [call[0] for call in calls] == ["train", "prune", "finetune"]
    engine = models.engine("pruned", "int8")
    assert models.engine("pruned", "int8") == engine
    assert [call[0] for call in calls[3:]] == ["export", "calibrate", "export"], "each file is made once"
    assert calls[4][:2] == ["calibrate", str(tmp_path / "pruned-fp32.onnx")]
    assert calls[5] == [
        "export", str(tmp_path / "pruned-int8.onnx"), "--trt", "--batch", "1,64,256", "-o", str(engine)
    ]  # fmt: skip
    models.onnx("pruned", "fp16")
    assert calls[6][:4] == ["export", str(tmp_path / "pruned.safetensors"), "--precision", "fp16"]
    with pytest.raises(SlimdeployError, match="--original and --pruned must be given together"):
        gpu_models.prepare(Pair(tmp_path, None, "digits", tmp_path), tmp_path)


def test_failing_command_is_named_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(SlimdeployError, match=r"^slimdeploy export: no checkpoint at .*none"):
        gpu_models.slimdeploy("export", tmp_path / "none", "--data", "digits", "-o", tmp_path / "m.onnx")


def test_machine_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise SlimdeployError("no NVIDIA driver here")

    monkeypatch.setattr(gpu_check, "open_device", none)
    result = CliRunner().invoke(gpu_check.main, [])
    assert result.exit_code == 2
    assert "no NVIDIA GPU: no NVIDIA driver here" in result.output


@pytest.mark.slow
def test_check_writes_one_result_that_its_schema_describes(
    tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU: two backends that are there, one that isn't, and the kernels, which can't run here."""
    monkeypatch.setattr(gpu_check, "gpu_name", lambda: "NVIDIA Test GPU")
    monkeypatch.setattr(gpu_models, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_models, "BACKENDS_MEASURED", {"torch": ("fp32",), "tensorrt": ("fp16",)})
    equipped = gpu_models.check_equipped
    monkeypatch.setattr(
        gpu_models, "check_equipped", lambda name: None if name == "torch" else equipped(name)
    )
    output = tmp_path / "result.json"
    parts = [word for part in ("kernels", "torch", "tensorrt") for word in ("--part", part)]
    timing = ["--seconds", "0.01", "--launches", "2", "--batch", "2"]
    checkpoints = ["--original", str(small_checkpoint), "--pruned", str(small_checkpoint)]
    result = CliRunner().invoke(gpu_check.main, [*checkpoints, *parts, *timing, "-o", str(output)])
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())
    jsonschema.validate(found, results.schema("gpu-check"))
    assert [(r["contest"], r["model"], r["batch"]) for r in found["rows"]] == [
        ("torch fp32", role, 2) for role in ("original", "pruned")
    ]
    assert "samples_ms" not in found["rows"][0]
    assert [one["batch"] for one in found["comparisons"]] == [2]
    left_out = {entry["what"] for entry in found["left_out"]}
    assert {"bandwidth of the kernels", "tensorrt fp16", "layer times of the engine"} == left_out
    assert found["failures"] == []
    assert found["targets"] == []


def test_contest_opens_the_file_that_its_backend_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_models, "check_equipped", lambda name: None)
    monkeypatch.setattr(Models, "onnx", lambda self, role, precision: Path(f"{role}-{precision}.onnx"))
    monkeypatch.setattr(Models, "engine", lambda self, role, precision: Path(f"{role}-{precision}.engine"))
    models = Models(
        {"original": Path("a.safetensors"), "pruned": Path("b.safetensors")},
        Pair(None, None, "digits", tmp_path),
        tmp_path,
    )
    files = {
        backend: [str(subject.path) for subject in Contestant(backend, "fp16", models).subjects()]
        for backend in ("torch-graph", "onnxruntime", "tensorrt-no-graph")
    }
    assert files == {
        "torch-graph": ["a.safetensors", "b.safetensors"],
        "onnxruntime": ["original-fp16.onnx", "pruned-fp16.onnx"],
        "tensorrt-no-graph": ["original-fp16.engine", "pruned-fp16.engine"],
    }
