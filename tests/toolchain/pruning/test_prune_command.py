"""`slimdeploy prune` as a user meets it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_checkpoint, write_latency_table

from slimdeploy.toolchain.latency.backend import LutOptions, open_backend
from slimdeploy.toolchain.latency.onnxruntime import OnnxruntimeBackend
from slimdeploy.toolchain.latency.table import TERMS, LatencyTable, load_table, shape_of
from slimdeploy.toolchain.models.checkpoint import load_checkpoint, save_checkpoint
from slimdeploy.toolchain.networks.layers import convolutions


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


def test_a_network_whose_activations_overflow_is_refused(
    slimdeploy_command: Callable, checkpoint: Path, image_folder: Path, tmp_path: Path
) -> None:
    found = load_checkpoint(checkpoint)
    with torch.no_grad():
        found.network.weight("bn1").fill_(3e38)
    save_checkpoint(checkpoint, found.network, found.info)
    arguments = ["prune", checkpoint, "--ratio", 0.4, "--criterion", "surgeon"]
    output = tmp_path / "pruned.safetensors"
    ran = slimdeploy_command(*arguments, "--data", f"folder:{image_folder}", "-o", output)
    assert ran.exit_code == 2
    assert "overflow float32 on these images" in ran.error


def write_table(path: Path, checkpoint: Path, device: dict[str, Any]) -> float:
    """A latency table by which a convolution costs what its widths say; the checkpoint's ms."""
    info = load_checkpoint(checkpoint).info
    size = info.preprocessing.size
    values = tuple({"launch": 1e-4, "product": 1e-4}.get(term, 0.0) for term in TERMS)
    shapes = {shape_of(conv): values for conv in convolutions(info.graph, size)}
    table = LatencyTable(device, 1, 1, None, shapes, (0.01, 0.0, 0.0))
    write_latency_table(path, table, info.graph, size)
    return table.network_ms(info.graph, size)


def test_another_machine_s_milliseconds_are_predicted_only(
    slimdeploy_command: Callable, checkpoint: Path, tmp_path: Path
) -> None:
    table, output = tmp_path / "lut.json", tmp_path / "pruned.safetensors"
    device = {
        "backend": "onnxruntime-cpu",
        "cpu": "another",
        "threads": 1,
        "cores": 1,
        "batch": 1,
        "versions": {"onnxruntime": "1"},
    }
    target = 0.7 * write_table(table, checkpoint, device)
    arguments = ["prune", checkpoint, "--latency-ms", target, "--latency-table", table, "--align", 1]
    ran = slimdeploy_command(*arguments, "-o", output, "--json")
    assert ran.exit_code == 0, ran.err
    latency, spec = ran.json["latency"], load_checkpoint(output).info.graph
    assert latency["measured_ms"] is None
    assert latency["not_measured"].startswith("the latency table is of another (here ")
    assert latency["predicted_ms"] == pytest.approx(load_table(table).network_ms(spec, 16))
    assert 0.9 * target <= latency["predicted_ms"] <= target
    assert "predicted only, not measured" in ran.err
    assert "ms predicted, not" in slimdeploy_command(*arguments, "-o", tmp_path / "b").out


def test_the_table_s_machine_measures(
    slimdeploy_command: Callable, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_backend(LutOptions(threads=1)) as backend:
        device = backend.device
    whole = write_table(tmp_path / "lut.json", checkpoint, device)
    target = 0.7 * whole

    def twice_as_slow_as_then(*_: Any, seconds: float) -> list[float]:
        return [2 * 0.97 * target] + 3 * [2 * whole]

    monkeypatch.setattr(OnnxruntimeBackend, "whole_ms", twice_as_slow_as_then)
    arguments = ["prune", checkpoint, "--latency-ms", target, "--latency-table", tmp_path / "lut.json",
                 "--align", 1, "--json"]  # fmt: skip
    ran = slimdeploy_command(*arguments, "-o", tmp_path / "a")
    assert ran.exit_code == 0, ran.err
    assert ran.json["latency"]["measured_ms"] == pytest.approx(0.97 * target)
    assert ran.json["latency"]["not_measured"] is None
    assert "! the table's networks now take 2.00× as long; measured times are divided by it" in ran.err
    ran = slimdeploy_command(*arguments, "--no-measure", "-o", tmp_path / "b")
    assert ran.json["latency"]["measured_ms"] is None
    assert ran.json["latency"]["not_measured"] == "not asked for"
    assert ran.json["latency"]["predicted_ms"] <= target


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
        ([], "give one target, --ratio, --params, --macs or --latency-ms, not none"),
        (["--ratio", 0.5, "--params", "1M"], "give one target, --ratio, --params, --macs or --latency-ms, "
                                             "not --ratio and --params"),
        (["--ratio", 1.0], "--ratio must be from 0 to below 1, not 1"),
        (["--ratio", -0.1], "--ratio must be from 0 to below 1, not -0.1"),
        (["--ratio", 0.5, "--min-channels", 0], "--min-channels must be at least 1, not 0"),
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


def test_it_replaces_nothing_unasked(slimdeploy_command: Callable, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "other"
    output.write_text("something")
    ran = slimdeploy_command("prune", checkpoint, "--ratio", 0.5, "-o", output)
    assert ran.exit_code == 2
    assert ran.error == f"{output} exists: pass --force to replace it, or another --output"
    assert output.read_text() == "something"
    ran = slimdeploy_command("prune", tmp_path / "nothing", "--ratio", 0.5, "-o", tmp_path / "x")
    assert (ran.exit_code, ran.error) == (2, f"no checkpoint at {tmp_path / 'nothing'}")
