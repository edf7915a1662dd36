"""Cost of sparse training that shrinks its network, compared with training the original for as many epochs.

    python benchmarks/shrinking.py --work runs/shrinking --output benchmarks/results/shrinking.json

Each run is a process with one thread; the two variants alternate, in reverse order for every second seed. CPU
time and wall time are those of the whole run (reading the data, training, validation, test); other programs
increase the wall time. Every run writes a record in the work folder, so the same command continues after an
interruption.
"""

from __future__ import annotations

import json
import multiprocessing
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.measure import process_memory, results
from slimdeploy.toolchain.training.options import TrainOptions

SHARE = 0.9
WAYS: dict[str, float | str] = {"original": 0.0, f"auto:{SHARE:g}": f"auto:{SHARE:g}"}
"""Name -> `--sparsity`."""
BASE = TrainOptions(batch_size=32, lr=0.05, crop_pad=1, flip=False, precision="fp32")
MEMORY_STEPS = 3

COLUMNS = {
    "way": "training the original, or to a share of γ at zero with their channels removed on the way",
    "seeds": "runs",
    "accuracy": "test accuracy, 0 to 1, mean over the seeds",
    "accuracy_sd": "its standard deviation over the seeds",
    "cpu_s": "CPU time of a whole run, s, mean",
    "cpu_ratio": "CPU time over the original's with the same seed, mean",
    "cpu_ratio_sd": "its standard deviation over the seeds",
    "wall_ratio": "the same of the wall time",
    "params": "parameters at the end, mean",
    "macs": "multiply-accumulates for one image at the end, mean",
    "mac_share": "MACs at the end of each epoch relative to the first, mean over epochs and seeds",
    "peak_mb": "peak resident memory of the whole run, MB, mean",
    "step_mb": "additional memory of training at the final widths, MB",
}


def run(arch: str, data: DataOptions, options: TrainOptions, output: Path) -> dict[str, Any]:
    """Train in this process; returns the cost."""
    import torch

    from slimdeploy.toolchain.stages.train import train_stage
    from slimdeploy.toolchain.training.history import read_history

    torch.set_num_threads(1)
    cpu, wall = time.process_time(), time.perf_counter()
    found = train_stage(data=data, arch=arch, options=options, output=output, device="cpu", force=True)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    macs = [record.macs for record in read_history(output)]
    return {
        "accuracy": found.result.accuracy["test"],
        "cpu_s": cpu,
        "wall_s": wall,
        "macs": macs[-1],
        "mac_share": statistics.mean(macs) / macs[0],
        "peak_mb": process_memory.peak_resident_mb(),
    }


def memory(checkpoint: Path, data: DataOptions, options: TrainOptions) -> dict[str, Any]:
    """A few training steps at the widths of `checkpoint`, in a process that does nothing else."""
    import torch

    from slimdeploy.toolchain.models.checkpoint import load_checkpoint
    from slimdeploy.toolchain.networks.cost import network_cost
    from slimdeploy.toolchain.networks.memory_layout import place
    from slimdeploy.toolchain.training.setup import build_optimizer

    torch.set_num_threads(1)
    network = load_checkpoint(checkpoint).network
    size = load_checkpoint(checkpoint).info.preprocessing.size
    images = torch.zeros(options.batch_size, 3, size, size).to(memory_format=torch.channels_last)
    before = process_memory.resident_mb() - _mb(network.parameters())
    process_memory.reset_peak()
    optimizer = build_optimizer(place(network, "cpu").train(), options)
    for _ in range(MEMORY_STEPS):
        optimizer.zero_grad(set_to_none=True)
        network(images).sum().backward()
        optimizer.step()
    params = network_cost(network.graph, size).params
    return {"step_mb": process_memory.peak_resident_mb() - before, "params": params}


def _mb(tensors: Any) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)) / process_memory.MB


def _alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run `work` in its own process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def measure(arch: str, data: DataOptions, options: TrainOptions, work: Path, seeds: int) -> list[dict]:
    """All runs, including those recorded by an earlier call."""
    found = []
    for seed in range(seeds):
        for way in list(WAYS)[:: -1 if seed % 2 else 1]:
            own = replace(options, seed=seed, sparsity=WAYS[way])
            stem = way.replace(":", "-").replace(".", "")
            output = work / f"{stem}-{seed}.safetensors"
            given = json.loads(json.dumps([arch, asdict(own), data.to_json()]))
            record = output.with_suffix(".json")
            known = artifacts.read_json(record, "record of a run") if record.exists() else {}
            if known.get("given") != given:
                click.echo(f"{way}, seed {seed} …", err=True)
                result = _alone(run, arch, data, own, output) | _alone(memory, output, data, own)
                known = {"given": given, "result": result}
                artifacts.write_json(record, known)
            found.append({"way": way, "seed": seed, **known["result"]})
    return found


def rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per variant: means over the seeds, ratios to the original with the same seed."""
    original = {run["seed"]: run for run in found if run["way"] == "original"}
    table = []
    for way in WAYS:
        runs = [run for run in found if run["way"] == way]
        cpu = [run["cpu_s"] / original[run["seed"]]["cpu_s"] for run in runs]
        wall = [run["wall_s"] / original[run["seed"]]["wall_s"] for run in runs]
        names = ("accuracy", "cpu_s", "params", "macs", "mac_share", "peak_mb", "step_mb")
        table.append(
            {
                "way": way,
                "seeds": len(runs),
                **{name: statistics.mean(run[name] for run in runs) for name in names},
                "accuracy_sd": _spread([run["accuracy"] for run in runs]),
                "cpu_ratio": statistics.mean(cpu),
                "cpu_ratio_sd": _spread(cpu),
                "wall_ratio": statistics.mean(wall),
            }
        )
    return table


def _spread(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def markdown(table: list[dict[str, Any]]) -> str:
    """The rows as a table for docs/training.md."""
    lines = [
        "| | test accuracy, % | CPU time | wall time | parameters | MACs | memory of a step | of the run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        spreads = [0.0 if row[key] is None else row[key] for key in ("accuracy_sd", "cpu_ratio_sd")]
        lines.append(
            f"| `{row['way']}` | {100 * row['accuracy']:.1f} ± {100 * spreads[0]:.1f} | "
            f"{row['cpu_ratio']:.2f} ± {spreads[1]:.2f} | {row['wall_ratio']:.2f} | "
            f"{row['params'] / 1e6:.2f} M | {row['macs'] / 1e6:.1f} M | {row['step_mb']:.0f} MB | "
            f"{row['peak_mb']:.0f} MB |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--data", default="digits", show_default=True)
@click.option("--arch", default="resnet18", show_default=True)
@click.option("--limit", type=int, help="Training images.")
@click.option("--epochs", default=10, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for networks, records.")
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(data: str, arch: str, limit: int | None, epochs: int, seeds: int, work: Path, output: Path) -> None:
    """Train both variants and write a `table` result."""
    work.mkdir(parents=True, exist_ok=True)
    options = replace(BASE, epochs=epochs, limit=limit)
    table = rows(measure(arch, DataOptions(data), options, work, seeds))
    document = results.document(
        "table",
        command=shlex.join(["python", "benchmarks/shrinking.py", *sys.argv[1:]]),
        title=f"Sparse training that shrinks {arch} on {data}, {epochs} epochs, batch {options.batch_size}",
        columns=COLUMNS,
        rows=table,
    )
    results.write(output, document)
    click.echo(markdown(table))


if __name__ == "__main__":
    run_program(main, "shrinking")
