"""`slimdeploy run`: everything in order, skipped where it is done, and going on where it was killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import quick_bench
from tiny_recipe import recipe_text

from slimdeploy.toolchain import locks
from slimdeploy.toolchain.library.bench import BenchResult
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.pipeline import plan
from slimdeploy.toolchain.pipeline.bench import bench_stage
from slimdeploy.toolchain.pipeline.choices import NetworkChoice
from slimdeploy.toolchain.pipeline.plan import _with_contents
from slimdeploy.toolchain.pipeline.recipe import Recipe, load_recipe
from slimdeploy.toolchain.pipeline.run import run_recipe
from slimdeploy.toolchain.report.run import read_run
from slimdeploy.toolchain.run_record import read_record

# One worker runs them all: they share what the fixture `first` takes seconds to make.
pytestmark = pytest.mark.xdist_group("pipeline")

AFTER_EXPORT = ["calibrate", "bench", "table", "package", "report"]
STAGES = ["train", "compare-0.25", "pruned", "finetune", "export-original", "export-final", *AFTER_EXPORT]
DELIVERED = """
[calibrate]
method = "minmax"
max_drop = 100
timing_seconds = 0.01
[package]
golden = 4
evaluation = 8
[report]
"""


def _write_recipe(folder: Path, images: Path, epochs: int = 2) -> Path:
    path = folder / "small.toml"
    path.write_text(
        "compare_ratios = [0.25]\n" + recipe_text(images, epochs=epochs, sparsity=0.1, ratio=0.5) + DELIVERED
    )
    return path


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """A folder with a recipe and, in `run`, what it made. Not to be changed."""
    folder = tmp_path_factory.mktemp("first")
    recipe = load_recipe(_write_recipe(folder, image_folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "bench_stage", quick_bench.bench)
        run_recipe(recipe, folder / "run", device="cpu", threads=1)
    return folder


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    """A copy of `first` that a test may change."""
    shutil.copytree(first, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def benched(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Nothing is timed; the list has an entry for each time that it was asked for."""
    asked: list[Path] = []

    def bench(recipe: Recipe, models: list[Path], output: Path, threads: int | None) -> BenchResult:
        asked.append(output)
        return quick_bench.bench(recipe, models, output, threads)

    monkeypatch.setattr(plan, "bench_stage", bench)
    return asked


def _stages(err: str) -> dict[str, bool]:
    """Stage -> whether it ran, as the log says, in order."""
    found = re.findall(r"^(\S+)( …|: up to date)$", err, re.MULTILINE)
    return {name: how == " …" for name, how in found}


def _rerun(slimdeploy_command: Callable, folder: Path, *settings: str) -> Any:
    options = [part for setting in settings for part in ("--set", setting)]
    ran = slimdeploy_command("run", folder / "small.toml", "-o", folder / "run", "--device", "cpu",
                             "--threads", 1, "--json", *options)  # fmt: skip
    assert ran.exit_code == 0, ran.err
    return ran


def test_everything_is_there(first: Path) -> None:
    run = first / "run"
    files = {path.name for path in run.iterdir()}
    assert {"sparse.safetensors", "compare-0.25.safetensors", "pruned.safetensors", "final.safetensors",
            "original.onnx", "original.onnx.json", "final.onnx", "final.onnx.json", "bench.json", "run.json",
            "table.json", "sparse.history.jsonl", "final.history.jsonl", "final.int8.onnx",
            "final.int8.onnx.json", "final.slim.tar", "report.html"} <= files  # fmt: skip
    assert not [name for name in files if name.endswith((".state", ".tmp"))]
    record = json.loads((run / "run.json").read_text())
    assert list(record) == STAGES
    assert all({"inputs", "output", "sha256", "result"} == set(entry) for entry in record.values())
    stages = [entry["stage"] for entry in load_checkpoint(run / "final.safetensors").info.provenance]
    assert stages == ["train", "prune", "finetune"]


def test_the_table_says_what_the_stages_said(first: Path) -> None:
    run = first / "run"
    table = json.loads((run / "table.json").read_text())
    jsonschema.validate(table, results.schema("table"))
    record = {name: entry["result"] for name, entry in json.loads((run / "run.json").read_text()).items()}
    rows = {row["step"]: row for row in table["rows"]}
    assert rows["trained"]["accuracy"] == record["train"]["accuracy"]["test"]
    assert rows["trained"]["params"] == record["pruned"]["params"]["before"]
    assert rows["fine-tuned"]["accuracy"] == record["finetune"]["accuracy"]["test"]
    assert rows["fine-tuned"]["params"] == record["pruned"]["params"]["after"]
    assert rows["pruned 50%, after"]["accuracy"] == record["pruned"]["accuracy"]["after"]
    assert rows["pruned 25%, after"]["params"] == record["compare-0.25"]["params"]["after"]
    measured = [row for row in table["rows"] if row["batch"] == 2]
    assert [row["step"] for row in measured] == ["original.onnx", "final.onnx", "final.int8.onnx"]
    assert rows["INT8, minmax"]["accuracy"] == record["calibrate"]["parity"]["accuracy"]["quantised"]
    assert measured[2]["file_mb"] == (run / "final.int8.onnx").stat().st_size / 2**20
    assert measured[0]["speedup"] is None
    comparison, int8 = record["bench"]["comparisons"]
    assert measured[1]["speedup"] == comparison["speedup"]
    assert measured[2]["speedup"] == int8["speedup"]
    assert measured[1]["realised"] == comparison["realised"]
    for row in table["rows"]:
        assert set(row) == set(table["columns"])


def test_bench_measures_the_files_of_the_run(first: Path, tmp_path: Path) -> None:
    files = [first / "run" / name for name in ("final.onnx", "final.int8.onnx")]
    recipe = load_recipe(first / "small.toml")
    result = bench_stage(recipe, files, tmp_path / "bench.json", 1)
    told = result.to_json()
    assert [row.p50_ms for row in result.rows] == [row["latency_ms"]["p50"] for row in told["rows"]]
    (comparison,) = result.comparisons
    assert (comparison.model, comparison.speedup) == (str(files[1]), told["comparisons"][0]["speedup"])
    assert comparison.ci95[0] <= comparison.speedup <= comparison.ci95[1]
    record = read_record(first / "run" / "run.json")
    final, int8 = told["rows"]
    assert final["accuracy"] == record["finetune"]["result"]["accuracy"]["test"]
    assert int8["accuracy"] == record["calibrate"]["result"]["parity"]["accuracy"]["quantised"]
    assert "samples_ms" not in final
    assert all(row["samples_ms"] for row in results.read(tmp_path / "bench.json", "bench")["rows"])


def test_a_stage_and_those_after_it_are_repeated(
    slimdeploy_command: Callable, run: Path, benched: list[Path]
) -> None:
    ran = slimdeploy_command("run", run / "small.toml", "-o", run / "run", "--from", "calibrate")
    assert [name for name, again in _stages(ran.err).items() if again] == AFTER_EXPORT
    assert list(json.loads((run / "run" / "run.json").read_text())) == STAGES
    refused = slimdeploy_command("run", run / "small.toml", "-o", run / "run", "--from", "report",
                                 "--set", "report=none")  # fmt: skip
    assert (refused.exit_code, refused.error) == (2, "--from report: the recipe has no section [report]")


def test_a_second_run_skips_everything(slimdeploy_command: Callable, run: Path, benched: list[Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (run / "run").glob("*.safetensors")}
    ran = _rerun(slimdeploy_command, run)
    assert _stages(ran.err) == dict.fromkeys(STAGES, False)
    assert benched == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert ran.json["run"] == str(run / "run")
    assert list(ran.json["stages"]) == STAGES
    assert ran.json["table"]["rows"] == json.loads((run / "run" / "table.json").read_text())["rows"]


@pytest.mark.parametrize(
    ("setting", "repeated"),
    [
        ("finetune.teacher=trained", ["finetune", "export-final", *AFTER_EXPORT]),
        ("finetune.epochs=2", ["finetune", "export-final", *AFTER_EXPORT]),
        ("prune.min_channels=2", ["compare-0.25", "pruned", "finetune", "export-final", *AFTER_EXPORT]),
        ("compare_ratios=[0.4]", ["compare-0.4", "table", "report"]),
        ("export.opset=17", ["export-original", "export-final", *AFTER_EXPORT]),
        ("calibrate.method=mse", AFTER_EXPORT),
        ("package.evaluation=6", ["package"]),
        ("bench.ci=0.9", ["bench", "table", "report"]),
        ("train.seed=1", STAGES),
    ],
)
def test_a_changed_key_repeats_what_depends_on_it(
    slimdeploy_command: Callable, run: Path, benched: list[Path], setting: str, repeated: list[str]
) -> None:
    ran = _rerun(slimdeploy_command, run, setting)
    assert [name for name, ran_again in _stages(ran.err).items() if ran_again] == repeated
    assert len(benched) == ("bench" in repeated)


def test_what_an_earlier_recipe_wrote_is_told(
    slimdeploy_command: Callable, run: Path, benched: list[Path]
) -> None:
    ran = _rerun(slimdeploy_command, run, "calibrate=none", "package=none")
    assert "! written by an earlier recipe, and not part of this run: final.int8.onnx, final.slim" in ran.err
    assert "calibrate" not in read_run(run / "run").stages
    assert "earlier recipe" not in _rerun(slimdeploy_command, run).err


def test_the_network_before_pruning_can_teach(
    slimdeploy_command: Callable, run: Path, benched: list[Path]
) -> None:
    _rerun(slimdeploy_command, run, "finetune.teacher=trained")
    entry = load_checkpoint(run / "run" / "final.safetensors").info.provenance[-1]
    assert entry["teacher"] == load_checkpoint(run / "run" / "sparse.safetensors").sha256
    again = _rerun(slimdeploy_command, run, "finetune.teacher=trained")
    assert not any(_stages(again.err).values())


def _tamper(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("name", "harm", "harmed"),
    [
        ("final.safetensors", Path.unlink, "finetune"),
        ("pruned.safetensors", _tamper, "pruned"),
        ("original.onnx", Path.unlink, "export-original"),
    ],
)
def test_a_lost_or_changed_output_is_made_again(
    slimdeploy_command: Callable, run: Path, benched: list[Path], name: str, harm: Callable[[Path], None],
    harmed: str,
) -> None:  # fmt: skip
    harm(run / "run" / name)
    ran = _stages(_rerun(slimdeploy_command, run).err)
    before = STAGES[: STAGES.index(harmed)]
    assert ran[harmed]
    assert not any(ran[name] for name in before)
    assert not any(_stages(_rerun(slimdeploy_command, run).err).values())


def test_the_same_images_in_another_folder_train_nothing_again(
    slimdeploy_command: Callable, run: Path, benched: list[Path], image_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(image_folder, tmp_path / "moved", copy_function=shutil.copyfile)
    ran = _stages(_rerun(slimdeploy_command, run, f"data.name=folder:{tmp_path / 'moved'}").err)
    assert not any(ran[name] for name in STAGES[: STAGES.index("bench")])


def test_a_stage_knows_the_files_that_it_reads_by_their_content(tmp_path: Path) -> None:
    table, source = tmp_path / "lut.json", tmp_path / "net.py"
    options = {"latency_table": str(table), "latency_ms": 2.0}
    keys, facts = [], []
    for text in ("1", "2"):
        table.write_text(text)
        source.write_text(f"# {text}\n")
        keys.append(_with_contents(options, "latency_table"))
        facts.append(NetworkChoice(arch=f"{source}:make").facts())
    assert keys[0] != keys[1]
    assert facts[0] != facts[1]
    assert _with_contents({"latency_table": None}, "latency_table") == {"latency_table": None}


def test_other_images_repeat_everything(
    slimdeploy_command: Callable, run: Path, benched: list[Path], image_folder: Path, tmp_path: Path
) -> None:
    from PIL import Image

    images = tmp_path / "images"
    shutil.copytree(image_folder, images)
    Image.new("RGB", (16, 16)).save(images / "train" / "red" / "9999.png")
    ran = _rerun(slimdeploy_command, run, f"data.name=folder:{images}")
    assert all(_stages(ran.err).values())


def test_a_killed_run_goes_on(
    slimdeploy_command: Callable, start_command: Callable, first: Path, benched: list[Path],
    image_folder: Path, tmp_path: Path,
) -> None:  # fmt: skip
    epochs = 12
    recipe = _write_recipe(tmp_path, image_folder, epochs)
    process = start_command("run", recipe, "-o", tmp_path / "run", "--device", "cpu", "--threads", 1)
    state = tmp_path / "run" / "sparse.safetensors.state"
    while not state.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err
    ran = _rerun(slimdeploy_command, tmp_path)
    assert re.search(rf"resuming after epoch \d+ of {epochs}", ran.err)
    assert all(_stages(ran.err).values())
    whole = tmp_path / "whole"
    whole.mkdir()
    _write_recipe(whole, image_folder, epochs)
    expected = _rerun(slimdeploy_command, whole).json["stages"]
    for stage in ("train", "finetune"):
        for key in ("accuracy", "loss", "zero_share", "epochs"):
            assert ran.json["stages"][stage][key] == expected[stage][key], stage
    assert ran.json["stages"]["pruned"]["channels"] == expected["pruned"]["channels"]


def test_a_second_run_on_one_folder_is_refused(
    slimdeploy_command: Callable, run: Path, benched: list[Path]
) -> None:
    with locks.exclusive(run / "run", "the test's folder"):
        before = (run / "run" / "run.json").read_bytes()
        ran = slimdeploy_command("run", run / "small.toml", "-o", run / "run", "--set", "train.epochs=1")
        said = f"the run folder {run / 'run'} is in use by process {os.getpid()}: wait for it to end"
        assert (ran.exit_code, ran.error) == (2, said)
        assert (run / "run" / "run.json").read_bytes() == before
