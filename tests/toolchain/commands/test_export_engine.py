"""`slimdeploy export --trt` and `--trt-check`, as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from slimdeploy.tests.toolchain.tensorrt_fake import FakeTensorrt
from slimdeploy.toolchain.cli import cli
from slimdeploy.toolchain.runtime.device import Device
from slimdeploy.toolchain.runtime.session import open_session
from slimdeploy.toolchain.stages import engine as engine_stage

PARENT = Path(__file__).parents[4]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorrt:
    """A machine with a GPU and TensorRT 10.3, both fake."""
    trt = FakeTensorrt("10.3.0")
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setenv("SLIMDEPLOY_CACHE", str(tmp_path / "cache"))

    def device() -> Device:
        trt._device.closed = False
        return trt._device

    monkeypatch.setattr(engine_stage, "open_device", device)
    return trt


def run(*arguments: object) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(cli, ["export", *map(str, arguments)])
    return result.exit_code, result.stdout, result.exception


def test_engine_is_built_beside_the_onnx_file(
    gpu: FakeTensorrt, models: dict[str, Path], tmp_path: Path
) -> None:
    engine = tmp_path / "m.engine"
    code, out, _ = run(models["int8"], "--trt", "--batch", "1,2,4", "-o", engine, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["precision"] == "int8"
    assert document["engine"]["file"] == str(engine)
    assert document["engine"]["machine"]["tensorrt"] == "10.3.0"
    assert document["engine"]["audit"]["precisions"] == {"int8": 21}
    assert document["trt_check"] is None
    assert gpu._device.closed
    code, out, _ = run(models["int8"], "--trt", "--batch", "1,2,4", "-o", engine, "--force")
    assert code == 0
    assert "21 int8" in out


def test_engine_without_the_int8_asked_for_exits_with_1(
    gpu: FakeTensorrt, models: dict[str, Path], tmp_path: Path
) -> None:
    gpu._loses_int8 = True
    code, out, error = run(models["int8"], "--trt", "-o", tmp_path / "m.engine")
    assert code == 1
    assert "fp32, not int8" in out
    assert str(error) == (
        f"{tmp_path}/m.engine: 21 layers are not in the requested precision, e.g. conv1: fp32 instead of int8"
    )


def test_command_of_the_manifest_builds_the_engine_again(
    gpu: FakeTensorrt, models: dict[str, Path], tmp_path: Path
) -> None:
    engine = tmp_path / "m.engine"
    options = ["--batch", "1,2,4", "--tf32", "--hardware-compatible", "ampere+", "--workspace-mb", "64"]
    code, out, _ = run(models["fp32"], "--trt", *options, "-o", engine, "--json")
    assert code == 0
    first, command = engine.read_bytes(), json.loads(out)["engine"]["rebuild"]
    engine.unlink()
    words = command.split()
    assert words[:2] == ["slimdeploy", "export"]
    assert run(*words[2:])[0] == 0
    assert engine.read_bytes() == first


def test_nothing_is_overwritten_unasked(gpu: FakeTensorrt, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_text("kept")
    code, _, error = run(models["fp32"], "--trt", "-o", tmp_path / "m.engine")
    assert code == 1  # the runner doesn't go through main(), which turns it into 2
    assert "m.engine exists: pass --force" in str(error)
    assert (tmp_path / "m.engine").read_text() == "kept"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--trt", "--precision", "fp16"], "--precision applies to checkpoints, and "),
        (["--trt-check", "--opset", "17"], "--opset applies to checkpoints"),
        (["--trt", "--data", "digits"], "--data applies to checkpoints"),
        (
            ["--trt-check", "-o", "x.engine"],
            "--output cannot be used with --trt-check alone, which writes no file",
        ),
        (["--batch", "8"], "--batch applies to engines: pass --trt or --trt-check"),
        (["--tf32"], "--tf32 applies to engines"),
        (["--trt-check", "--dla", "0"], "--dla can't be checked without a GPU (there is no DLA)"),
        (["--trt-check", "--version-compatible"], "--version-compatible can't be checked without a GPU"),
    ],
)
def test_options_without_effect_are_refused(
    gpu: FakeTensorrt, models: dict[str, Path], options: list[str], said: str
) -> None:
    assert said in str(run(models["fp32"], *options)[2])


def test_an_engine_never_replaces_what_it_is_built_from(
    gpu: FakeTensorrt, models: dict[str, Path], small_checkpoint: Path, tmp_path: Path
) -> None:
    onnx = tmp_path / "m.onnx"
    onnx.write_bytes(models["fp32"].read_bytes())
    error = run(onnx, "--trt", "-o", onnx, "--force")[2]
    assert "are the same file" in str(error)
    error = run(small_checkpoint, "--trt", "-o", tmp_path / "m.engine", "--force")[2]
    assert "m.engine would be the ONNX file and the engine" in str(error)
    before = small_checkpoint.read_bytes()
    error = run(small_checkpoint, "-o", small_checkpoint, "--force")[2]
    assert "are the same file" in str(error)
    assert (onnx.read_bytes(), small_checkpoint.read_bytes()) == (models["fp32"].read_bytes(), before)
    assert list(tmp_path.glob("m.*")) == [onnx]


def test_a_missing_tensorrt_is_found_out_before_the_work(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert isinstance(run(small_checkpoint, "--trt", "-o", tmp_path / "m.onnx")[2], ModuleNotFoundError)
    assert list(tmp_path.iterdir()) == []
    assert "no model at" in str(run(tmp_path / "missing.onnx", "--trt")[2])


def test_onnx_file_alone_leaves_nothing_to_do(models: dict[str, Path]) -> None:
    assert "is ONNX already: pass --trt or --trt-check" in str(run(models["fp32"])[2])


def test_missing_tensorrt_is_named(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    error = run(models["fp32"], "--trt", "-o", tmp_path / "m.engine")[2]
    assert isinstance(error, ModuleNotFoundError)
    assert error.name == "tensorrt", "what the command line turns into the command that installs it"


@pytest.mark.usefixtures("tensorrt_cpu")
def test_check_builds_with_nvidia_s_builder_and_writes_nothing(models: dict[str, Path]) -> None:
    before = sorted(models["int8"].parent.iterdir())
    code, out, _ = run(models["int8"], "--trt-check", "--batch", "1,8,64", "--json")
    assert code == 0
    check = json.loads(out)["trt_check"]
    assert check["builds"]
    assert check["tensorrt"].startswith("11.")
    assert (check["precision"], check["batch"]) == ("int8", [1, 8, 64])
    assert check["plan_bytes"] > 0
    assert sorted(models["int8"].parent.iterdir()) == before


@pytest.mark.usefixtures("tensorrt_cpu")
def test_check_and_build_need_neither_torch_nor_onnx(models: dict[str, Path], tmp_path: Path) -> None:
    """On a device there is no torch; in a fresh process, importing it raises."""
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'onnx', 'onnxruntime', 'safetensors', 'pycuda'):\n"
        "    sys.modules[name] = None\n"
        "import slimdeploy.toolchain.runtime.tensorrt, slimdeploy.toolchain.stages.engine\n"
        "sys.argv[0] = 'slimdeploy'\n"
        "from slimdeploy.toolchain.cli import main\n"
        "main()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, "export", str(models["fp32"]), "--trt-check", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PARENT)},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["trt_check"]["builds"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of random images, two a class, for `--data folder:…`."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog", "frog", "ship"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_checkpoint_becomes_onnx_and_engine(
    gpu: FakeTensorrt, small_checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "m.onnx"
    arguments = [small_checkpoint, "--data", f"folder:{images}", "-o", output, "--trt", "--batch", "1,2,4"]
    code, out, error = run(*arguments, "--json")
    assert code == 0, error
    document = json.loads(out)
    assert document["parity"]["images"] == 8
    assert document["engine"]["file"] == str(output.with_suffix(".engine"))
    assert document["engine"]["parent"] == {"file": "m.onnx", "sha256": document["sha256"]}
    output.unlink()
    assert "m.engine exists: pass --force" in str(run(*arguments)[2])
    assert not output.exists(), "refused before the work, not after it"


def test_half_precision_is_asked_for_in_the_file(
    gpu: FakeTensorrt, small_checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "half.onnx"
    arguments = ["--precision", "fp16", "--data", f"folder:{images}", "-o", output, "--trt", "--json"]
    code, out, error = run(small_checkpoint, *arguments)
    assert code == 0, error
    document = json.loads(out)
    assert document["precision"] == "fp16"
    assert 0 < document["parity"]["max_abs_error"] < 0.1
    assert document["engine"]["audit"]["precisions"] == {"fp16": 21}
    with open_session(output) as session:
        assert session.precision == "fp16"
