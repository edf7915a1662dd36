"""`slimdeploy prune` as a user meets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import write_checkpoint

from slimdeploy.toolchain.checkpoint import load_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source.safetensors", "tiny-deep")


def test_without_data_it_only_cuts(slimdeploy_command: Callable, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "pruned.safetensors"
    ran = slimdeploy_command("prune", checkpoint, "--ratio", 0.5, "--align", 1, "-o", output, "--json")
    assert ran.exit_code == 0, ran.err
    result = ran.json
    assert result["checkpoint"] == str(output)
    assert result["params"]["after"] < result["params"]["before"]
    assert result["macs"]["after"] < result["macs"]["before"]
    assert "accuracy" not in result
    summary = slimdeploy_command("summary", output, "--json").json
    assert summary["channels"] == result["channels"]
    assert (summary["params"], summary["macs"]) == (result["params"]["after"], result["macs"]["after"])


def test_with_data_it_reports_every_accuracy_and_the_checkpoint_has_the_last(
    slimdeploy_command: Callable, checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "pruned.safetensors"
    arguments = ["prune", checkpoint, "--ratio", 0.4, "--align", 1, "--data", f"folder:{image_folder}"]
    ran = slimdeploy_command(*arguments, "--statistics-images", 32, "-o", output, "--json")
    assert ran.exit_code == 0, ran.err
    accuracy = ran.json["accuracy"]
    assert {"before", "after", "after_recalibration"} <= set(accuracy)
    evaluated = slimdeploy_command("evaluate", output, "--json").json
    assert evaluated["accuracy"] == accuracy["final"]
    assert load_checkpoint(output).info.metrics["accuracy"]["test"] == accuracy["final"]
    before = slimdeploy_command("evaluate", checkpoint, "--data", f"folder:{image_folder}", "--json").json
    assert before["accuracy"] == accuracy["before"]


def test_the_text_names_folded_constants(
    slimdeploy_command: Callable, checkpoint: Path, tmp_path: Path
) -> None:
    ran = slimdeploy_command("prune", checkpoint, "--ratio", 0.5, "--align", 1, "-o", tmp_path / "a")
    assert "channels: exactly into" in ran.out
    ran = slimdeploy_command(
        "prune", checkpoint, "--ratio", 0.5, "--align", 1, "--no-fold", "-o", tmp_path / "b"
    )
    assert ran.exit_code == 0
    assert "exactly into" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one target, ratio, params, macs or latency-ms, not none"),
        (["--ratio", 0.5, "--params", "1M"], "give one target, ratio, params, macs or latency-ms, "
                                             "not ratio and params"),
        (["--ratio", 1.0], "ratio must be from 0 to below 1, not 1"),
        (["--ratio", -0.1], "ratio must be from 0 to below 1, not -0.1"),
        (["--ratio", 0.5, "--min-channels", 0], "min-channels must be at least 1, not 0"),
        (["--ratio", 0.5, "--criterion", "gama"], "unknown criterion 'gama'; known: "),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line_and_write_nothing(
    slimdeploy_command: Callable, checkpoint: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    ran = slimdeploy_command("prune", checkpoint, *arguments, "-o", tmp_path / "x.safetensors")
    assert ran.exit_code == 2
    assert ran.error.startswith(message)
    assert ran.out == ""
    assert not (tmp_path / "x.safetensors").exists()


def test_it_neither_replaces_unasked_nor_itself(
    slimdeploy_command: Callable, checkpoint: Path, tmp_path: Path
) -> None:
    before = checkpoint.read_bytes()
    ran = slimdeploy_command("prune", checkpoint, "--ratio", 0.5, "-o", checkpoint)
    assert ran.exit_code == 2
    assert ran.error == f"{checkpoint} exists: pass --force to replace it, or another --output"
    assert checkpoint.read_bytes() == before
    ran = slimdeploy_command("prune", tmp_path / "nothing", "--ratio", 0.5, "-o", tmp_path / "x")
    assert (ran.exit_code, ran.error) == (2, f"no checkpoint at {tmp_path / 'nothing'}")
