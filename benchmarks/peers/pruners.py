"""slimdeploy against Torch-Pruning and a plain global threshold: the same checkpoint, budget and fine-tuning.

    pip install torch-pruning==1.6.0
    python benchmarks/peers/pruners.py sparse.safetensors --data folder:data/cifar10-jpeg \\
        --latency-table benchmarks/results/lut-64.json --work runs/pruners \\
        --output benchmarks/results/pruners.json

Each contender prunes the checkpoint to at most `--params`; its accuracy is measured after the cut, after BN
recalibration, and after the same fine-tuning with each `--seed`; then all are timed with the original in one
interleaved run. Finished parts are kept in `--work`, so the same command continues after an interruption.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from pruner_contenders import CONTENDERS, Task

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.commands.flags import Written
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.measure.bench import find_surroundings, measure
from slimdeploy.toolchain.measure.options import MeasureOptions
from slimdeploy.toolchain.measure.subjects import subjects_for
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.options import AMOUNT
from slimdeploy.toolchain.stages.export import export_stage
from slimdeploy.toolchain.stages.train import finetune_stage
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.state import state_path


def _named(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def _paths(name: str, work: Path) -> tuple[Path, Path]:
    """The pruned checkpoint of a contender, and the record of its accuracies."""
    slug = "".join(c if c.isalnum() else "-" for c in name.lower())
    return work / f"{slug}.safetensors", work / f"{slug}.json"


def _prune(name: str, task: Task, work: Path) -> None:
    """Prune with a contender, unless an earlier call did."""
    pruned, record = _paths(name, work)
    if not record.exists():
        log(f"{name} …")
        artifacts.write_json(record, CONTENDERS[name](task, pruned) | {"finetuned": {}})


def _finetune(name: str, task: Task, work: Path, options: TrainOptions) -> None:
    """Fine-tune what a contender pruned, unless an earlier call did so with the same seed."""
    pruned, record = _paths(name, work)
    found, seed = artifacts.read_json(record, "record of a contender"), str(options.seed)
    if seed not in found["finetuned"]:
        log(f"{name}, seed {seed} …")
        final = _final(pruned, options.seed)
        tuned = finetune_stage(
            pruned, data=task.data, options=options, output=final, device="cpu",
            resume=state_path(final).exists(), force=True,
        )  # fmt: skip
        found["finetuned"][seed] = tuned.result.accuracy["test"]
        artifacts.write_json(record, found)


def _final(pruned: Path, seed: int) -> Path:
    return pruned.with_suffix(f".seed-{seed}.safetensors")


def _export(name: str, task: Task, work: Path) -> dict[str, Any]:
    """The contender's record, and its ONNX file: of the first seed, or not fine-tuned."""
    pruned, record = _paths(name, work)
    found = artifacts.read_json(record, "record of a contender")
    tuned = found.pop("finetuned")
    if tuned:
        values = list(tuned.values())
        found |= {"seeds": " ".join(tuned), "finetuned": statistics.mean(values)}
        found |= {"finetuned_sd": statistics.stdev(values) if len(values) > 1 else None}
    onnx = pruned.with_suffix(".onnx")
    network = _final(pruned, int(next(iter(tuned)))) if tuned else pruned
    export_stage(network, options=ExportOptions(), output=onnx, data=task.data, force=True)
    return {**found, "onnx": onnx}


COLUMNS = {
    "contender": "who pruned",
    "params": "parameters",
    "macs": "multiply-accumulates for one image",
    "cut": "test accuracy after the cut",
    "mended": "after folding and compensation, if the contender has it",
    "recalibrated": "after recalibration of the BN statistics on 5,120 training images",
    "finetuned": "test accuracy after fine-tuning, mean over the seeds",
    "finetuned_sd": "its standard deviation over the seeds",
    "seeds": "of the fine-tunings",
    "batch_1_ms": "median latency at batch 1, onnxruntime, one thread, ms",
    "batch_1_speedup": "speed-up over the original",
    "batch_1_low": "lower end of its 95 % interval",
    "batch_1_high": "upper end",
    "batch_1_realised": "speed-up over MAC ratio",
    "batch_64_ms": "median latency at batch 64, onnxruntime, one thread, ms",
    "batch_64_speedup": "speed-up over the original",
    "batch_64_low": "lower end of its 95 % interval",
    "batch_64_high": "upper end",
    "batch_64_realised": "speed-up over MAC ratio",
    "seconds": "time to prune: scoring, selection and cut (including the statistics of activations, if used)",
}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--data", required=True)
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"))
@click.option("--params", type=Written(AMOUNT), default="3.94M", show_default=True)
@click.option("--latency-table", type=click.Path(path_type=Path, exists=True), required=True,
              help="For the contender with a budget of milliseconds: of batch 64.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True, help="Of fine-tuning.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0,), show_default=True,
              help="Of a fine-tuning. Repeatable.")  # fmt: skip
@click.option("--limit", type=int, help="Fine-tune on a balanced subset.")
@click.option("--only", multiple=True, help="Contenders, by a part of their name.")
@click.option("--finetune", multiple=True, help="Those of them to fine-tune [default: all].")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Timed seconds for each model.")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(
    checkpoint: Path, data: str, data_dir: Path, params: float, latency_table: Path, epochs: int,
    seeds: tuple[int, ...], limit: int | None, only: tuple[str, ...], finetune: tuple[str, ...],
    seconds: float, work: Path, output: Path,
) -> None:  # fmt: skip
    """Run all contenders on CHECKPOINT and write a `table` result."""
    task = Task(checkpoint, DataOptions(data, data_dir), params, latency_table)
    options = TrainOptions(
        epochs=epochs, lr=0.02, batch_size=128, validation=0.002, flip_mode="alternating", limit=limit
    )
    names = [name for name in CONTENDERS if not only or _named(name, only)]
    work.mkdir(parents=True, exist_ok=True)
    original = work / "original.onnx"
    export_stage(checkpoint, options=ExportOptions(), output=original, data=task.data, force=True)
    for name in names:
        _prune(name, task, work)
    for seed in seeds:
        for name in names:
            if not finetune or _named(name, finetune):
                _finetune(name, task, work, replace(options, seed=seed))
    found = {name: _export(name, task, work) for name in names}
    subjects = subjects_for([original, *(f["onnx"] for f in found.values())], ["onnxruntime"], _sessions())
    bench = measure(subjects, MeasureOptions(batches=(1, 64), seconds=seconds), find_surroundings(None, log))
    rows = [_row("original", {"onnx": original}, bench)]
    rows += [_row(name, one, bench) for name, one in found.items()]
    tuning = {
        k: v for k, v in asdict(options).items() if k in ("epochs", "lr", "schedule", "batch_size", "limit")
    }
    table = results.document(
        "table",
        command=shlex.join(["python", "benchmarks/peers/pruners.py", *sys.argv[1:]]),
        machine=bench["machine"],
        title=f"Pruned to {params:,.0f} parameters at most, fine-tuned with {tuning}",
        columns=COLUMNS,
        rows=rows,
        remarks=bench["remarks"],
    )
    results.write(output, table)
    log(f"written: {output}")


def _sessions() -> Any:
    from slimdeploy.toolchain.runtime.session import SessionOptions

    return SessionOptions(device="cpu", threads=1)


def _row(name: str, found: dict[str, Any], bench: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"contender": name, **{k: v for k, v in found.items() if k in COLUMNS}}
    for one in bench["rows"]:
        if one["model"] == str(found["onnx"]):
            row |= {"params": one["params"], "macs": one["macs"]}
            row[f"batch_{one['batch']}_ms"] = one["latency_ms"]["p50"]
    for one in bench["comparisons"]:
        if one["model"] == str(found["onnx"]):
            row[f"batch_{one['batch']}_speedup"] = one["speedup"]
            row[f"batch_{one['batch']}_low"], row[f"batch_{one['batch']}_high"] = one["ci95"]
            row[f"batch_{one['batch']}_realised"] = one["realised"]
    return row


if __name__ == "__main__":
    run_program(main, "pruners")
