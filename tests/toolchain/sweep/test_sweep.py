"""`slimdeploy sweep` on a tiny network, with SQLite."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import quick_bench
from tiny_recipe import recipe_text

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'slimdeploy[sweep]'")

import sqlalchemy.exc

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import is_held
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.pipeline import plan
from slimdeploy.toolchain.report.run import read_run
from slimdeploy.toolchain.sweep.options import SweepOptions
from slimdeploy.toolchain.sweep.storage import open_study


@pytest.fixture
def sweep(
    slimdeploy_command: Callable, tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs `slimdeploy sweep` of the recipe into `tmp_path/out`, nothing measured for real."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(recipe_text(image_folder))
    monkeypatch.setattr(plan, "bench_stage", quick_bench.bench)

    def run(*arguments: object, output: str = "out") -> Any:
        return slimdeploy_command("sweep", recipe, "-o", tmp_path / output, "--device", "cpu", "--threads", 1,
                                  "--heartbeat", 1, *arguments)  # fmt: skip

    return run


def document(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "sweep.json").read_text())
    jsonschema.validate(found, results.schema("sweep"))
    return found


def worked(err: str, stage: str) -> int:
    """How often a stage ran, rather than being up to date."""
    return len(re.findall(rf"^{stage} …$", err, re.MULTILINE))


def test_a_grid_is_done_training_each_sparsity_once(sweep: Callable, tmp_path: Path) -> None:
    ran = sweep("--sparsity", "0,0.1", "--ratio", "0.2,0.3", "--json", "--pick", "params<1M")
    assert ran.exit_code == 0, ran.err
    found = document(tmp_path / "out")
    assert {(t["sparsity"], t["ratio"], t["align"]) for t in found["trials"]} == {
        (0.0, 0.2, 1), (0.1, 0.2, 1), (0.0, 0.3, 1), (0.1, 0.3, 1)
    }  # fmt: skip
    assert (worked(ran.err, "train"), worked(ran.err, "export-original")) == (2, 2)
    assert worked(ran.err, "pruned") == worked(ran.err, "finetune") == worked(ran.err, "bench") == 4
    assert len(list((tmp_path / "out" / "trained").iterdir())) == 2
    # The pruned networks differ, and each trial is a run that can be reported by itself.
    for trial in found["trials"]:
        run = read_run(tmp_path / "out" / trial["folder"])
        options = {entry["stage"]: entry["options"] for entry in run.final.info.provenance}
        assert options["train"]["sparsity"] == trial["sparsity"]
        assert options["prune"]["ratio"] == trial["ratio"]
        assert sum(trial["gamma"]["counts"]) == len(run.original.scales)
        assert len(trial["curves"]["train"]) == len(trial["curves"]["finetune"]) == 1
    # What was picked can be used at once.
    picked = next(t for t in found["trials"] if t["name"] == found["picked"]["name"])
    assert picked["accuracy"]["validation"] == max(t["accuracy"]["validation"] for t in found["trials"])
    handed = load_checkpoint(tmp_path / "out" / "picked.safetensors")
    assert handed.sha256 == load_checkpoint(tmp_path / "out" / picked["checkpoint"]).sha256
    assert found["picked"]["files"] == ["picked.safetensors", "picked.onnx", "picked.onnx.json"]
    assert ran.json["front"] == found["front"]

    again = sweep("--sparsity", "0,0.1", "--ratio", "0.2,0.3")
    assert again.exit_code == 0, again.err
    assert again.err == "", "everything was done"
    assert not (tmp_path / "out" / "picked.onnx").exists(), "nothing was asked for"
    assert "no other trial is as fast and as accurate" in again.out

    more = sweep("--sparsity", "0,0.1", "--ratio", "0.1,0.2,0.3")
    assert more.exit_code == 0, more.err
    assert (worked(more.err, "train"), worked(more.err, "pruned")) == (0, 2)
    assert len(document(tmp_path / "out")["trials"]) == 6


def test_a_sampler_does_so_many_trials(sweep: Callable, tmp_path: Path) -> None:
    ran = sweep("--sparsity", "0,0.1", "--ratio", "0.1,0.3", "--align", "1,2", "--trials", 4)
    assert ran.exit_code == 0, ran.err
    found = document(tmp_path / "out")
    assert found["study"]["method"] == "tpe"
    assert 1 <= len(found["trials"]) <= 4  # a sampler may come back to a point
    for trial in found["trials"]:
        assert trial["sparsity"] in (0, 0.1)
        assert 0.1 <= trial["ratio"] <= 0.3
        assert trial["align"] in (1, 2)
    changed = sweep("--sparsity", "0,0.2", "--ratio", "0.1,0.3", "--align", "1,2", "--trials", 4)
    assert changed.exit_code == 2
    assert "sampler.sparsity = [0.0, 0.1], this sweep [0.0, 0.2]: give this one another name" in changed.error


def test_a_point_that_fails_is_said_and_the_others_are_done(sweep: Callable, tmp_path: Path) -> None:
    ran = sweep("--ratio", "0.2,0.6")
    assert ran.exit_code == 1
    assert "ratio-0.6_align-1 failed: 24 of 60 prunable channels is out of reach" in ran.error
    found = document(tmp_path / "out")
    assert [trial["ratio"] for trial in found["trials"]] == [0.2]
    assert [one["ratio"] for one in found["failed"]] == [0.6]


def test_where_all_fail_there_is_no_result(sweep: Callable, tmp_path: Path) -> None:
    ran = sweep("--ratio", "0.6")
    assert ran.exit_code == 2
    assert ran.error.startswith("no trial was completed: 24 of 60 prunable channels is out of reach")
    assert not (tmp_path / "out" / "sweep.json").exists()


def test_another_sweep_is_kept_out_of_the_study(sweep: Callable, tmp_path: Path) -> None:
    assert sweep("--ratio", "0.2").exit_code == 0
    ran = sweep("--ratio", "0.3", "--set", "finetune.epochs=2")
    assert ran.exit_code == 2
    expected = "has finetune.epochs = 1, this sweep 2: give this one another name with --study"
    assert ran.error.startswith("the study 'small' in sqlite:///")
    assert ran.error.endswith(expected)
    assert len(document(tmp_path / "out")["trials"]) == 1


def test_of_two_different_sweeps_that_start_together_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds the study without settings, before the one that has created it writes them."""
    import optuna

    options = SweepOptions().named("small", tmp_path / "out")
    refused: list[str] = []
    really = optuna.Study.set_user_attr

    def other() -> None:
        with pytest.raises(SlimdeployError) as error:
            open_study({"contents": "other"}, options)
        refused.append(str(error.value))

    thread = threading.Thread(target=other)

    def set_user_attr(study: optuna.Study, key: str, value: Any) -> None:
        monkeypatch.setattr(optuna.Study, "set_user_attr", really)
        thread.start()
        thread.join(0.3)
        really(study, key, value)

    monkeypatch.setattr(optuna.Study, "set_user_attr", set_user_attr)
    open_study({"contents": "first"}, options)
    thread.join(30)
    assert ["has contents = 'first', this sweep 'other'" in error for error in refused] == [True]


def test_nothing_to_pick_is_said(sweep: Callable, tmp_path: Path) -> None:
    ran = sweep("--ratio", "0.2", "--pick", "latency<=0.001us")
    assert ran.exit_code == 1
    assert ran.error.startswith(
        "no trial has latency<=0.001us: the closest, sparsity-0_ratio-0.2_align-1, has "
    )
    assert document(tmp_path / "out")["picked"] is None
    assert not (tmp_path / "out" / "picked.onnx").exists()


def test_a_result_is_written_alone(sweep: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps that share a folder end together. Mixed results would leave picked files that `sweep.json`
    doesn't mention: the next sweep would take them for the user's.
    """
    held = []
    really = results.write

    def write(path: Path, written: dict[str, Any]) -> None:
        if path.name == "sweep.json":
            held.append(is_held(path.parent))
        really(path, written)

    monkeypatch.setattr(results, "write", write)
    assert sweep("--ratio", "0.2", "--pick", "params<4G").exit_code == 0
    assert held == [True]
    assert not (tmp_path / "out" / ".lock").exists()


def _text_file(folder: Path) -> str:
    (folder / "file.db").write_text("no database, but long enough to be taken for the header of one" * 9)
    return f"sqlite:///{folder / 'file.db'}"


UNREACHABLE = "postgresql+psycopg://me:{}@127.0.0.1:1/x"
HALF = ("digits", "--ratio", "0.5")
NO_URL = "--storage is not a database's URL: write it as postgresql+psycopg://"


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (_text_file, "file is not a database"),
        (lambda folder: "nowhere", NO_URL),
        (lambda folder: "paper://x", NO_URL),
        (lambda folder: "sqlite:////proc/none/study.db", "/proc/none"),
        (
            lambda folder: UNREACHABLE.format("hidden"),
            f"cannot use the storage {UNREACHABLE.format('***')}: ",
        ),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line(
    sweep: Callable, tmp_path: Path, storage: Callable[[Path], str], message: str
) -> None:
    ran = sweep("--ratio", "0.2", "--storage", storage(tmp_path))
    assert ran.exit_code == 2
    assert message in ran.error
    assert len(ran.err.splitlines()) == 1
    assert "hidden" not in ran.err
    assert not (tmp_path / "out").exists()


def test_a_storage_that_becomes_full_during_a_trial_is_one_line(
    sweep: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database takes no more pages when the trial ends; nothing else of it has changed."""
    import optuna

    really = optuna.storages.RDBStorage.set_trial_state_values

    def set_state(storage: Any, trial: int, state: Any, values: Any = None) -> bool:
        if state.is_finished():
            full = sqlite3.OperationalError("database or disk is full")
            cause = sqlalchemy.exc.OperationalError("UPDATE trials", {}, full)
            raise optuna.exceptions.StorageInternalError("during the commit") from cause
        return really(storage, trial, state, values)

    monkeypatch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", set_state)
    ran = sweep("--ratio", "0.6")
    assert ran.exit_code == 2
    assert ran.error.startswith(f"cannot use the storage sqlite:///{tmp_path / 'out' / 'study.db'}: ")
    assert ran.error.endswith("database or disk is full")


def test_a_study_of_someone_else_is_left_alone(sweep: Callable, tmp_path: Path) -> None:
    import optuna

    storage = f"sqlite:///{tmp_path / 'theirs.db'}"
    optuna.create_study(storage=storage, study_name="small").optimize(lambda trial: 1.0, n_trials=1)
    ran = sweep("--ratio", "0.2", "--storage", storage)
    assert ran.exit_code == 2
    assert "is not a sweep's: give this one another name with --study" in ran.error
    with sqlite3.connect(tmp_path / "theirs.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (1,)


@pytest.mark.parametrize("name", ["sweep.json", "picked.onnx", "picked.safetensors"])
def test_files_of_the_user_are_kept(sweep: Callable, tmp_path: Path, name: str) -> None:
    mine = tmp_path / "out" / name
    mine.parent.mkdir()
    mine.write_text("mine")
    ran = sweep("--ratio", "0.2", "--pick", "params<4G")
    assert ran.exit_code == 2
    assert str(mine) in ran.error
    assert ran.error.endswith("choose another folder, or move the file away")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*HALF, "--study", ""], "--study must not be an empty text"),
        (["nosuch", "--ratio", "0.5"], "no recipe 'nosuch'; there are "),
        (["digits"], "nothing to sweep over: give --sparsity, --ratio or --align"),
        (["digits", "--ratio", "0.5,x"], "--ratio 0.5,x: 'x' is not a number"),
        ([*HALF, "--pick", "latency"], "--pick 'latency': write it as "),
        ([*HALF, "--set", "prune.params=1k"], "give --ratio or --set prune.params=1k, not both"),
        (["digits", "--sparsity", "0,1", "--set", "train.sparsity=0.1"], "give --sparsity or --set train."),
        ([*HALF, "--sampler", "tpe"], "--sampler needs --trials N"),
        ([*HALF, "--trials", "2", "--sampler", "tp"], "Invalid value for '--sampler': 'tp' is"),
    ],
)  # fmt: skip
def test_wrong_calls_are_one_line(slimdeploy_command: Callable, arguments: list[str], message: str) -> None:
    ran = slimdeploy_command("sweep", *arguments)
    assert ran.exit_code == 2
    assert ran.error.startswith(message)
    assert len(ran.err.splitlines()) == 1


WITHOUT = """
import sys
import blocking
blocking.block(sys.argv[1])
from slimdeploy.toolchain.cli import main
sys.argv = ["slimdeploy", *sys.argv[2:]]
main()
"""


@pytest.mark.parametrize("library", ["optuna", "psycopg"])
def test_a_missing_library_is_one_line(fresh_python: Callable, tmp_path: Path, library: str) -> None:
    arguments = ("sweep", "digits", "--ratio", "0.5", "-o", str(tmp_path / "out"), "--storage", UNREACHABLE)
    ran = fresh_python(WITHOUT, library, *arguments)
    assert ran.exit_code == 2
    line = f"slimdeploy: this needs {library}, which is not installed: pip install 'slimdeploy[sweep]'"
    assert ran.err.splitlines() == [line]
