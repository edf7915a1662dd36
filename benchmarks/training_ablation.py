"""Effect of each training option: the same small network with the same budget, several seeds, one option
changed at a time.

    python benchmarks/training_ablation.py --data folder:data/cifar10-jpeg --work runs/training-options \
        --output benchmarks/results/training-options.json

The network is a ResNet-18 with a quarter of its widths on images of 16×16 pixels, so that everything takes
about twenty minutes on one core. The results hold for short runs of small networks. Every run writes a record
in the work folder, so the same command continues after an interruption.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.architectures import resnet
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.training.options import TrainOptions

ARCH = resnet.register(
    resnet.ResNet("resnet18-quarter", False, (2, 2, 2, 2), stem_width=16, widths=(16, 32, 64, 128))
)
SIZE = 16
RATIO = 0.9
STRENGTH = 8e-3
"""λ of the runs with a fixed one: 1.4 times the λ that would bring γ from 1 to 0 without the loss."""

BASE = TrainOptions(epochs=10, lr=0.1, crop_pad=2, precision="fp32", sparse_align=1)
FINETUNE = replace(BASE, epochs=4, lr=0.02)

OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "EMA 0.98": {"ema": 0.98},
    "cutout 4": {"cutout": 4},
    "alternating flip": {"flip_mode": "alternating"},
}
RECALIBRATED = "BN recalibration on 2,048 images"
SPARSITIES: dict[str, dict[str, Any]] = {
    f"proximal, λ = {STRENGTH:g}": {"sparsity": STRENGTH},
    f"subgradient, λ = {STRENGTH:g}": {"sparsity": STRENGTH, "sparsity_step": "subgradient"},
    f"auto:{RATIO:g}": {"sparsity": f"auto:{RATIO:g}"},
}
FINETUNED = f"proximal, λ = {STRENGTH:g}"
TEACHINGS: dict[str, dict[str, Any]] = {
    "fine-tuned": {},
    "fine-tuned with the unpruned network as teacher": {"teacher": "", "distill": 0.5, "temperature": 4.0},
}

COLUMNS = {
    "experiment": "objective: options against plain training; sparsity: ways to the same pruning; "
    "finetune: after that pruning",
    "option": "the changed option",
    "seeds": "runs",
    "accuracy": "test accuracy at the end of the run, 0 to 1, mean over the seeds",
    "accuracy_sd": "its standard deviation over the seeds",
    "gain": "mean over the seeds of the accuracy minus that of the experiment's first row with the same seed",
    "gain_sd": "its standard deviation over the seeds",
    "zero_share": "share of the penalised γ that are exactly zero, mean",
    "pruned": f"test accuracy after {RATIO:.0%} of the prunable channels are removed",
    "pruned_sd": "its standard deviation over the seeds",
    "folded": "the same with the constants of removed channels folded into the next layers, mean",
}


@dataclass(frozen=True)
class Bench:
    """Folder of records and networks, training data, and durations."""

    work: Path
    data: DataOptions
    limit: int
    epochs: int

    def train(self, name: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
        """Train from scratch, or read the record of an earlier call."""
        from slimdeploy.toolchain.stages.train import train_stage

        options = self._options(BASE, seed, changes)
        return self._once(
            self.path(name, seed),
            options,
            lambda output, resume: train_stage(
                data=self.data, arch=ARCH.name, options=options, output=output, device="cpu", resume=resume,
                force=not resume,
            ).to_json(),
        )  # fmt: skip

    def recalibrate(self, seed: int) -> dict[str, Any]:
        """Recalibrate the BN statistics of the plain network: a run of 0 epochs that ends with it."""
        options = replace(BASE, epochs=0, limit=self.limit, recalibration_images=2048)
        return self._finetune(self.path("plain", seed), self.path(RECALIBRATED, seed), options)

    def finetune(self, name: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
        """Fine-tune the pruned network, or read the record of an earlier call."""
        if "teacher" in changes:
            changes = {**changes, "teacher": str(self.path(FINETUNED, seed))}
        options = self._options(FINETUNE, seed, changes)
        return self._finetune(self._pruned(FINETUNED, seed), self.path(name, seed), options)

    def _finetune(self, source: Path, output: Path, options: TrainOptions) -> dict[str, Any]:
        from slimdeploy.toolchain.stages.train import finetune_stage

        return self._once(
            output,
            options,
            lambda output, resume: finetune_stage(
                source, data=self.data, options=options, output=output, device="cpu", resume=resume,
                force=not resume,
            ).to_json(),
        )  # fmt: skip

    def prune(self, name: str, seed: int) -> dict[str, Any]:
        """Remove RATIO of the channels of a trained network, `plain` and `folded`, and evaluate both; or read
        the record of an earlier call.
        """
        from slimdeploy.toolchain.stages.prune import prune_stage

        source = self.path(name, seed)

        def work(output: Path, _: bool) -> dict[str, Any]:
            accuracies = {}
            for how, fold in (("plain", False), ("folded", True)):
                options = PruneOptions(ratio=RATIO, align=1, fold=fold)
                prune_stage(source, options=options, output=output, force=True)
                accuracies[how] = _accuracy(output, self.data)
            return accuracies

        return self._once(self._pruned(name, seed), PruneOptions(ratio=RATIO, align=1), work)

    def path(self, name: str, seed: int) -> Path:
        """The checkpoint of a run."""
        plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in name)
        return self.work / f"{plain}-{seed}.safetensors"

    def _pruned(self, name: str, seed: int) -> Path:
        return self.path(f"{name} pruned", seed)

    def _options(self, base: TrainOptions, seed: int, changes: dict[str, Any]) -> TrainOptions:
        share = base.epochs / BASE.epochs
        epochs = max(1, round(self.epochs * share))
        return replace(base, limit=self.limit, epochs=epochs, seed=seed, **changes)

    def _once(
        self, output: Path, options: Any, work: Callable[[Path, bool], dict[str, Any]]
    ) -> dict[str, Any]:
        record = output.with_suffix(".json")
        given = json.loads(json.dumps([asdict(options), self.data.to_json()]))
        found = artifacts.read_json(record, "record of a run") if record.exists() else {}
        resume = found.get("given") == given
        if resume and "result" in found and output.exists():
            return found["result"]  # type: ignore[no-any-return]
        click.echo(f"{output.stem} …", err=True)
        artifacts.write_json(record, {"given": given})
        result = work(output, resume)
        artifacts.write_json(record, {"given": given, "result": result})
        return result


def _accuracy(checkpoint: Path, data: DataOptions) -> float:
    from slimdeploy.toolchain.models.checkpoint import load_checkpoint
    from slimdeploy.toolchain.training.evaluation import evaluate_network

    found = load_checkpoint(checkpoint)
    dataset = dataset_for(found.info, data, checkpoint)
    return evaluate_network(found.network, dataset.test, dataset.preprocessing, device="cpu").accuracy


def objective_rows(bench: Bench, seeds: int) -> list[dict[str, Any]]:
    """Each option of the objective, compared with plain training."""
    accuracies = {
        name: [bench.train(name, seed, changes)["accuracy"]["test"] for seed in range(seeds)]
        for name, changes in OBJECTIVES.items()
    }
    accuracies[RECALIBRATED] = [bench.recalibrate(seed)["accuracy"]["test"] for seed in range(seeds)]
    return [_row("objective", name, found, accuracies["plain"]) for name, found in accuracies.items()]


def sparsity_rows(bench: Bench, seeds: int) -> list[dict[str, Any]]:
    """The methods of sparsity, and the effect of each after pruning."""
    rows, first = [], None
    for name, changes in SPARSITIES.items():
        trained = [bench.train(name, seed, changes) for seed in range(seeds)]
        pruned = [bench.prune(name, seed) for seed in range(seeds)]
        found = [run["accuracy"]["test"] for run in trained]
        first = first or found
        row = _row("sparsity", name, found, first)
        after = [accuracy["plain"] for accuracy in pruned]
        row["zero_share"] = float(np.mean([run["zero_share"] for run in trained]))
        row["pruned"], row["pruned_sd"] = float(np.mean(after)), _spread(after)
        row["folded"] = float(np.mean([accuracy["folded"] for accuracy in pruned]))
        rows.append(row)
    return rows


def finetune_rows(bench: Bench, seeds: int) -> list[dict[str, Any]]:
    """Fine-tuning the pruned network with and without a teacher."""
    accuracies = {
        name: [bench.finetune(name, seed, changes)["accuracy"]["test"] for seed in range(seeds)]
        for name, changes in TEACHINGS.items()
    }
    first = next(iter(accuracies.values()))
    return [_row("finetune", name, found, first) for name, found in accuracies.items()]


def _row(experiment: str, option: str, found: list[float], first: list[float]) -> dict[str, Any]:
    gains = np.subtract(found, first).tolist()
    return {
        **dict.fromkeys(COLUMNS),
        "experiment": experiment,
        "option": option,
        "seeds": len(found),
        "accuracy": float(np.mean(found)),
        "accuracy_sd": _spread(found),
        "gain": None if found is first else float(np.mean(gains)),
        "gain_sd": None if found is first else _spread(gains),
    }


def _spread(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as tables for docs/training.md, accuracies in per cent."""

    def figure(mean: float | None, spread: float | None, form: str) -> str:
        if mean is None:
            return ""
        return f"{100 * mean:{form}}" + ("" if spread is None else f" ± {100 * spread:.1f}")

    lines = ["| | test accuracy, % | gain |", "|---|---|---|"]
    for row in rows:
        if row["experiment"] != "sparsity":
            gain = figure(row["gain"], row["gain_sd"], "+.1f")
            lines.append(
                f"| {row['option']} | {figure(row['accuracy'], row['accuracy_sd'], '.1f')} | {gain} |"
            )
    lines += ["", "| | γ at zero | before | pruned | constants folded |", "|---|---|---|---|---|"]
    for row in rows:
        if row["experiment"] == "sparsity":
            cells = [row["option"], figure(row["zero_share"], None, ".1f")]
            cells += [figure(row[key], row[f"{key}_sd"], ".1f") for key in ("accuracy", "pruned")]
            lines.append(f"| {' | '.join([*cells, figure(row['folded'], None, '.1f')])} |")
    return "\n".join(lines)


@click.command()
@click.option("--data", default="folder:data/cifar10-jpeg", show_default=True)
@click.option("--limit", default=5000, show_default=True, help="Training images.")
@click.option("--epochs", default=BASE.epochs, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for networks, records.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(data: str, limit: int, epochs: int, seeds: int, work: Path, output: Path) -> None:
    """Run all experiments and write a `table` result."""
    import torch

    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, DataOptions(data, size=SIZE), limit, epochs)
    rows = [*objective_rows(bench, seeds), *sparsity_rows(bench, seeds), *finetune_rows(bench, seeds)]
    title = (
        f"Options of training: ResNet-18 at a quarter of its widths, {SIZE}×{SIZE}, {limit:,} training "
        f"images less a tenth for validation, {epochs} epochs"
    )
    table = results.document(
        "table",
        command=shlex.join(["python", "benchmarks/training_ablation.py", *sys.argv[1:]]),
        title=title,
        columns=COLUMNS,
        rows=rows,
    )
    results.write(output, table)
    click.echo(markdown(rows))


if __name__ == "__main__":
    run_program(main, "training_ablation")
