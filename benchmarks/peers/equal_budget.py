"""slimdeploy against Torch-Pruning on any network: the same MACs, the same fine-tuning with distillation.

    pip install torch-pruning==1.6.0
    python -m slimdeploy.benchmarks.peers.equal_budget original.safetensors --macs 8M \\
        --data folder:data/cifar10-jpeg --epochs 1 --epochs 5 --seed 0 --seed 1 --seed 2 \\
        --work runs/equal-budget --output benchmarks/results/equal-budget.json

Torch-Pruning prunes to the first `--macs`. Its steps end below, so slimdeploy prunes to the MACs of its
smallest network, and to each further `--macs` (`surgeon-40M`). With a `--latency-table` of `slimdeploy lut`
it also prunes to each predicted `--latency-ms`, and may then remove blocks (`surgeon-10-ms`). The original is
the teacher. `control` is the original itself, fine-tuned like the pruned networks, but for `--control-epochs`
and with the first seed only: its epochs take several times as long. Finished parts and the teacher's logits
are kept in `--work`, so the same command continues after an interruption, and processes with different seeds
may run at the same time.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from slimdeploy.benchmarks.peers.pruner_contenders import Contender, Task, by_slimdeploy, by_torch_pruning
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.commands.flags import Written
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.options import AMOUNT, PruneOptions
from slimdeploy.toolchain.stages.train import finetune_stage
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.state import state_path

PATH = click.Path(path_type=Path)
PEERS: dict[str, Callable[[float], Contender]] = {
    "torch-pruning-BN-scale": lambda macs: by_torch_pruning("BN-scale", 8, macs),
    "torch-pruning-group-norm": lambda macs: by_torch_pruning("group-norm", 8, macs),
}
SURGEON = "surgeon"
CONTROL = "control"
"""Name of the original where it is fine-tuned like the contenders."""
COLUMNS = {
    "contender": "who pruned",
    "params": "parameters",
    "macs": "multiply-accumulates for one image",
    "cut": "test accuracy after the cut",
    "pruned": "after compensation and recalibration, before training",
    "epochs": "of fine-tuning",
    "accuracy": "test accuracy after fine-tuning, mean over the seeds",
    "sd": "its standard deviation over the seeds",
    "seeds": "of the fine-tunings",
}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--data", required=True)
@click.option("--macs", "amounts", type=Written(AMOUNT), required=True, multiple=True,
              help="Maximum multiply-accumulates per image.")  # fmt: skip
@click.option("--latency-ms", type=float, multiple=True, help="Prune to this latency, too.")
@click.option("--latency-table", type=PATH, help="With --latency-ms: written by `slimdeploy lut`.")
@click.option("--epochs", type=click.IntRange(1), multiple=True, default=(1, 5), show_default=True)
@click.option("--control-epochs", type=click.IntRange(1), multiple=True, default=(1,), show_default=True)
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@click.option("--limit", type=int, help="Fine-tune on a balanced subset.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--work", type=PATH, required=True)
@click.option("--output", type=PATH, required=True)
def main(
    checkpoint: Path, data: str, amounts: tuple[float, ...], latency_ms: tuple[float, ...],
    latency_table: Path | None, epochs: tuple[int, ...], control_epochs: tuple[int, ...],
    seeds: tuple[int, ...], limit: int | None, device: str, work: Path, output: Path,
) -> None:  # fmt: skip
    """Prune CHECKPOINT with every contender, fine-tune each, and write a `table` result."""
    before = load_checkpoint(checkpoint).info
    options = DataOptions(data, size=before.preprocessing.size)
    task = Task(checkpoint, options, 0, Path(), before.preprocessing.size, device)
    work.mkdir(parents=True, exist_ok=True)
    macs, *further = amounts
    cuts = {name: _pruned(name, make(macs), task, work) for name, make in PEERS.items()}
    least = min(network_cost(load_checkpoint(path).info.graph, task.size).macs for path, _ in cuts.values())
    ours = {SURGEON: _surgeon(macs=least)}
    ours |= {f"{SURGEON}-{amount / 1e6:g}M": _surgeon(macs=amount) for amount in further}
    for ms in latency_ms:
        ours[f"{SURGEON}-{ms:g}-ms"] = _surgeon(
            latency_ms=ms, latency_table=str(latency_table), measure=False, align=16,
            allow_block_removal=True,
        )  # fmt: skip
    cuts = {name: _pruned(name, made, task, work) for name, made in ours.items()} | cuts
    cuts[CONTROL] = checkpoint, {}
    rows = []
    for name, (pruned, found) in cuts.items():
        cost = network_cost(load_checkpoint(pruned).info.graph, task.size)
        told = {"contender": name, "params": cost.params, "macs": cost.macs}
        told |= {"cut": found.get("cut"), "pruned": found.get("recalibrated")}
        counts, own = (control_epochs, seeds[:1]) if name == CONTROL else (epochs, seeds)
        for count in counts:
            values = [_finetuned(name, pruned, task, work, count, seed, limit) for seed in own]
            spread = statistics.stdev(values) if len(values) > 1 else None
            rows.append({**told, "epochs": count, "accuracy": statistics.mean(values), "sd": spread,
                         "seeds": " ".join(map(str, own))})  # fmt: skip
    document = results.document(
        "table",
        command=shlex.join(["python", "-m", "slimdeploy.benchmarks.peers.equal_budget", *sys.argv[1:]]),
        title=f"{before.graph.arch}, test accuracy {before.metrics['accuracy']['test']:.4f}, pruned to at "
        f"most {macs:,.0f} MACs and fine-tuned with the original as the teacher",
        columns=COLUMNS,
        rows=rows,
    )
    results.write(output, document)
    log(f"written: {output}")


def _surgeon(**target: Any) -> Contender:
    return by_slimdeploy(lambda task: PruneOptions(criterion="surgeon", residual="couple", **target))


def _pruned(name: str, contender: Contender, task: Task, work: Path) -> tuple[Path, dict[str, Any]]:
    """The pruned checkpoint of a contender and its accuracies, from an earlier call if there was one."""
    path, record = work / f"{name}.safetensors", work / f"{name}.json"
    if not record.exists():
        log(f"{name} …")
        artifacts.write_json(record, contender(task, path))
    return path, artifacts.read_json(record, "record of a contender")


def _finetuned(
    name: str, pruned: Path, task: Task, work: Path, epochs: int, seed: int, limit: int | None
) -> float:
    """Test accuracy after fine-tuning, from an earlier call if there was one."""
    final = work / f"{name}-{epochs}-seed-{seed}.safetensors"
    record = final.with_suffix(".json")
    if not record.exists():
        log(f"{name}, {epochs} epochs, seed {seed} …")
        options = TrainOptions(
            epochs=epochs, lr=0.02, batch_size=128, seed=seed, limit=limit, teacher=str(task.source),
            teacher_cache=str(work / "teacher.sqlite"),
        )  # fmt: skip
        tuned = finetune_stage(
            pruned, data=task.data, options=options, output=final, device=task.device,
            resume=state_path(final).exists(), force=True,
        )  # fmt: skip
        artifacts.write_json(record, tuned.result.accuracy)
    return float(artifacts.read_json(record, "record of a fine-tuning")["test"])


if __name__ == "__main__":
    run_program(main, "equal_budget")
