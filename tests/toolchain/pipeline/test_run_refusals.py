"""What `slimdeploy run` refuses before it trains anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_recipe import recipe_text


@pytest.fixture
def recipe(image_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(recipe_text(image_folder))
    return path


def test_a_damaged_record_is_one_line(slimdeploy_command: Callable, recipe: Path, tmp_path: Path) -> None:
    record = tmp_path / "run" / "run.json"
    record.parent.mkdir()
    record.write_text("{")
    ran = slimdeploy_command("run", recipe, "-o", tmp_path / "run")
    assert ran.exit_code == 2
    assert ran.error.startswith(f"{record} is not a readable record of a run: ")
    assert ran.error.endswith("; choose another folder, or remove this one")


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("final.onnx", None),
        ("final.onnx", "{}"),
        ("sparse.history.jsonl", None),
        ("sparse.safetensors.state", None),
        ("final.onnx.json", None),
    ],
)
def test_files_of_others_are_not_replaced(
    slimdeploy_command: Callable, recipe: Path, tmp_path: Path, name: str, record: str | None
) -> None:
    run, theirs = tmp_path / "run", tmp_path / "run" / name
    run.mkdir()
    theirs.write_text("theirs")
    if record is not None:
        (run / "run.json").write_text(record)
    ran = slimdeploy_command("run", recipe, "-o", run)
    assert ran.exit_code == 2
    assert ran.error == (
        f"{theirs} exists, and {run / 'run.json'} has no record of it: choose another folder, or move the "
        "file away"
    )
    assert theirs.read_text() == "theirs"
    assert not list(run.glob("*.safetensors"))


OUT_OF_REACH = "is out of reach: the smallest network that the other settings allow has"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finetune.teacher=nowhere.safetensors", "no teacher at nowhere.safetensors"),
        ("prune.params=100", OUT_OF_REACH),
        ("prune.macs=1k", OUT_OF_REACH),
        ("prune.ratio=0.999", OUT_OF_REACH),
    ],
)
def test_what_cannot_be_met_is_told_before_anything_is_trained(
    slimdeploy_command: Callable, recipe: Path, tmp_path: Path, setting: str, message: str
) -> None:
    ran = slimdeploy_command("run", recipe, "-o", tmp_path / "run", "--set", setting)
    assert ran.exit_code == 2
    assert message in ran.error
    assert not (tmp_path / "run").exists()
