"""The rows of the experiments with training options, from made-up runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from slimdeploy.benchmarks import training_ablation
from slimdeploy.benchmarks.training_ablation import (
    Bench,
    finetune_rows,
    markdown,
    objective_rows,
    sparsity_rows,
)
from slimdeploy.toolchain.data.dataset import DataOptions

GAINS = {"plain": 0.0, "cutout 4": 0.1}


class MadeUp(Bench):
    """Runs whose accuracy is told by their name and seed."""

    def train(self, name: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
        return {"accuracy": {"test": 0.5 + seed / 100 + GAINS.get(name, 0.0)}, "zero_share": 0.9}

    def recalibrate(self, seed: int) -> dict[str, Any]:
        return self.train("plain", 2 * seed, {})

    def prune(self, name: str, seed: int) -> dict[str, Any]:
        return {"plain": 0.3, "folded": 0.4}

    def finetune(self, name: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
        return self.train("plain", seed, {})


@pytest.fixture
def bench(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path, DataOptions("digits"), limit=100, epochs=1)


def test_gains_are_from_run_to_run(bench: MadeUp) -> None:
    rows = {row["option"]: row for row in objective_rows(bench, 3)}
    plain, cutout = rows["plain"], rows["cutout 4"]
    assert (plain["accuracy"], plain["accuracy_sd"]) == (pytest.approx(0.51), pytest.approx(0.01))
    assert plain["gain"] is None
    assert (cutout["gain"], cutout["gain_sd"]) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-9))
    assert rows[training_ablation.RECALIBRATED]["gain"] == pytest.approx(0.01)


def test_rows_have_the_columns_and_make_tables(bench: MadeUp) -> None:
    rows = [*objective_rows(bench, 2), *sparsity_rows(bench, 2), *finetune_rows(bench, 2)]
    assert all(set(row) == set(training_ablation.COLUMNS) for row in rows)
    text = markdown(rows)
    assert "| cutout 4 | 60.5 ± 0.7 | +10.0 ± 0.0 |" in text
    assert "| auto:0.9 | 90.0 | 50.5 ± 0.7 | 30.0 ± 0.0 | 40.0 |" in text


def test_a_run_on_record_is_not_made_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, DataOptions("digits"), limit=100, epochs=1)
    asked = []

    def work(output: Path, resume: bool) -> dict[str, Any]:
        asked.append(resume)
        output.touch()
        return {"accuracy": 0.5}

    output, options = tmp_path / "x.safetensors", training_ablation.BASE
    assert bench._once(output, options, work) == bench._once(output, options, work) == {"accuracy": 0.5}
    assert asked == [False]
    record = json.loads(output.with_suffix(".json").read_text())
    output.with_suffix(".json").write_text(json.dumps({"given": record["given"]}))  # it was broken off
    bench._once(output, options, work)
    bench._once(output, training_ablation.FINETUNE, work)
    assert asked == [False, True, False]
