"""`slimdeploy bench` and `evaluate` as a user runs them: two processes' worth of ONNX, torch and digits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema
import onnx
import pytest

import slimdeploy
from slimdeploy.toolchain.data.dataset import DataOptions, load_dataset
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.checkpoint import save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.architectures.resnet import RESNETS, ChannelConfig
from slimdeploy.toolchain.networks.module import build_network

pytestmark = pytest.mark.xdist_group("bench_command")  # one worker makes what they share

ROOT = Path(slimdeploy.__file__).parent


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A thin and a thinner ResNet-18, as checkpoint and as ONNX."""
    folder, digits = tmp_path_factory.mktemp("models"), load_dataset(DataOptions("digits"))
    full = RESNETS["resnet18"].full_channels()
    for name, divisor in (("thin", 8), ("thinner", 32)):
        blocks = tuple((inner // divisor, out) for inner, out in full.blocks)
        spec = build_graph("resnet18", channels=ChannelConfig(full.stem, blocks))
        network = build_network(spec, seed=0).eval()
        info = ModelInfo(spec, digits.preprocessing, digits.class_names)
        save_checkpoint(folder / f"{name}.safetensors", network, info)
        onnx.save(build_onnx(network, info), folder / f"{name}.onnx")
    return folder


QUICK = ["--seconds", "0.01", "--launches", "2", "--threads", "1"]


def test_onnx_against_torch_with_accuracy_and_a_result_file(models, tmp_path, slimdeploy_command):
    output = tmp_path / "result.json"
    ran = slimdeploy_command(
        "bench", models / "thin.onnx", models / "thinner.safetensors", "--batch", "4", "--data", "digits",
        "--limit", "20", *QUICK, "-o", output, "--fail-if", "macs > 1x", "--json",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.err
    shown, kept = ran.json, results.read(output, "bench")
    jsonschema.validate(kept, results.schema("bench"))
    assert results.without_samples(kept) == shown
    assert [row["backend"] for row in kept["rows"]] == ["onnxruntime-cpu", "torch-cpu"]
    assert [row["images"] for row in kept["rows"]] == [20, 20]
    assert kept["comparisons"][0]["mac_ratio"] > 1
    assert kept["rows"][0]["memory_mb"]["file"] == pytest.approx(
        (models / "thin.onnx").stat().st_size / 2**20
    )
    assert {"torch", "onnxruntime"} <= set(kept["machine"]["versions"])
    assert kept["guards"][0]["verdict"] == "passes"

    # The same runs against themselves: nothing changed, on however busy a machine.
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("1.json", "2.json"):
        (runs / name).write_bytes(output.read_bytes())
    ran = slimdeploy_command("bench", "--compare", runs, runs, "--fail-if", "latency_p50 > 1.5x")
    assert ran.exit_code == 0, ran.err
    assert "latency_p50 > 1.5x: passes" in ran.out
    ran = slimdeploy_command("bench", "--compare", output, output, "--fail-if", "macs > 0.5x")
    assert ran.exit_code == 1
    assert "'macs > 0.5x' holds" in ran.err


def test_the_tables_name_models_and_what_is_missing(models):
    """In a process of its own, as a user runs it."""
    command = [sys.executable, "-m", "slimdeploy.toolchain", "bench", models / "thin.onnx", "--batch", "1"]
    done = subprocess.run([*command, *QUICK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "thin.onnx" in "".join(done.stdout.split())
    assert "images/s" in done.stdout
    assert "not available here:" in done.stdout


def test_evaluate_agrees_across_backends(models, slimdeploy_command):
    found = []
    for name in ("thin.onnx", "thin.safetensors"):
        ran = slimdeploy_command("evaluate", models / name, "--data", "digits", "--limit", "50", "--json")
        found.append(ran.json)
    assert [one["backend"] for one in found] == ["onnxruntime-cpu", "torch-cpu"]
    assert found[0]["accuracy"] == found[1]["accuracy"]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-4)
    assert found[0]["images"] == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "name at least one model"),
        (["bench", "none.onnx"], "no model at none.onnx"),
        (["bench", "model.txt"], "no backend opens '.txt'"),
        (["bench", "none.onnx", "--batch", "0"], "is not a list of batch sizes, such as 1,64"),
        (["bench", "none.onnx", "--ci", "200%"], "is not a share between 0 and 100%"),
        (["bench", "none.onnx", "--backend", "tensorboard"], "unknown backend 'tensorboard'"),
        (["bench", "none.onnx", "--fail-if", "speed"], "write it as"),
        (["bench", "none.onnx", "--fail-if", "latency_p50 > 1x"], "name a baseline and another model"),
        (["bench", "a.onnx", "b.onnx", "--fail-if", "accuracy < -1pp"], "--fail-if accuracy needs --data"),
        (["bench", "none.onnx", "--compare", "a", "b"], "leave the models out"),
        (["bench", "--compare", "a.json", "b.json"], "no bench result at a.json"),
        (
            ["bench", "--compare", "a", "b", "-o", "c"],
            "--output has no effect with --compare, which measures",
        ),
        (["bench", "--compare", "a", "b", "--batch", "4"], "--batch has no effect with --compare"),
        (["bench", "--compare", "a", "b", "--data", "digits"], "--data has no effect with --compare"),
        (["bench", "--compare", "a"], "requires 2 arguments. (slimdeploy bench --help)"),
        (["bench", "a.onnx", "--limit", "5"], "--limit needs --data: without images no accuracy is measured"),
        (["evaluate", ROOT / "docs", "--data", "digits"], "docs is a folder, not a model"),
        (["bench", "--compare", ROOT / "docs", "b.json"], "no bench results (*.json) in the folder"),
        (["evaluate", "none.onnx", "--data", "digits"], "no model at none.onnx"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message, slimdeploy_command):
    ran = slimdeploy_command(*arguments)
    assert ran.exit_code == 2
    (line,) = ran.err.strip().splitlines()
    assert message in line


def test_an_existing_result_is_not_overwritten(models, tmp_path, slimdeploy_command):
    (tmp_path / "r.json").write_text("mine")
    ran = slimdeploy_command("bench", models / "thin.onnx", "-o", tmp_path / "r.json")
    assert ran.exit_code == 2
    assert "exists: pass --force" in ran.error
    assert (tmp_path / "r.json").read_text() == "mine"


def test_measuring_needs_none_of_the_runtimes():
    """Every module of toolchain/measure/ imports without them: each is needed only to measure with it."""
    modules = [
        f"slimdeploy.toolchain.measure.{path.stem}"
        for path in sorted((ROOT / "toolchain/measure").glob("*.py"))
    ]
    program = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'onnxruntime', 'tensorrt', 'pycuda', 'pynvml'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules}:\n    __import__(name)\n"
        "for name in ('slimdeploy.toolchain.cli', 'slimdeploy.toolchain.pipeline.run'):\n"
        "    assert name not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(modules) > 10
