"""slimdeploy against Torch-Pruning and a plain global threshold: the same checkpoint, budget and fine-tuning.

    pip install torch-pruning==1.6.0
    python benchmarks/peers/pruners.py sparse.safetensors --data folder:data/cifar10-jpeg \\
        --work runs/pruners --output benchmarks/results/pruners.json

Each contender prunes the checkpoint to at most `--params`; its accuracy is taken right after the cut, after
BN recalibration, and after the same fine-tuning; then all are timed against the original in one interleaved
run. What is done lies in `--work` and is not done again, so the same command goes on after an interruption.
"""

from __future__ import annotations

import copy
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from slimdeploy.benchmarks import results
from slimdeploy.benchmarks.bench import BenchOptions, find_surroundings, measure
from slimdeploy.benchmarks.latency import TimingOptions
from slimdeploy.benchmarks.subjects import subjects_for
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from slimdeploy.toolchain.commands.prune import Amount
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, balanced_subset
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.export.stage import export_stage
from slimdeploy.toolchain.networks.channels import ChannelConfig
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.layers import enumerate_layers
from slimdeploy.toolchain.networks.resnet import ResNet
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.pruning.criteria.registry import Evidence, channel_scores
from slimdeploy.toolchain.pruning.groups import channel_groups
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.recalibration import recalibrate
from slimdeploy.toolchain.pruning.selection import best_channels
from slimdeploy.toolchain.pruning.stage import prune_stage
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.training.evaluation import evaluate_network
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.stage import finetune_stage
from slimdeploy.toolchain.training.state import state_path

RECALIBRATION_IMAGES = 5120


@dataclass(frozen=True)
class Task:
    """What every contender is given."""

    source: Path
    data: DataOptions
    params: float
    seed: int


Contender = Callable[[Task, Path], dict[str, float]]
"""Writes the pruned checkpoint to the path, statistics recalibrated; returns accuracies and seconds."""

CONTENDERS: dict[str, Contender] = {}


def contender(name: str) -> Callable[[Contender], Contender]:
    def register(function: Contender) -> Contender:
        CONTENDERS[name] = function
        return function

    return register


def _slimdeploy(options: PruneOptions) -> Contender:
    def run(task: Task, output: Path) -> dict[str, float]:
        result = prune_stage(
            task.source, options=_fit_budget(options, task), output=output, data=task.data, force=True
        )
        assert result.accuracy is not None
        found = result.accuracy
        return {
            "cut": found["after"],
            "mended": found.get("after_compensation", found["after_folding"]),
            "recalibrated": found["after_recalibration"],
            "seconds": result.seconds,
        }

    return run


def _fit_budget(options: PruneOptions, task: Task) -> PruneOptions:
    return options if options.macs else replace(options, params=task.params)


CONTENDERS["slimdeploy: γ"] = _slimdeploy(PruneOptions(params=1.0))
CONTENDERS["slimdeploy: surgeon, coupled, 64 M MACs"] = _slimdeploy(
    PruneOptions(macs=64e6, criterion="surgeon", residual="couple", align=32)
)


@contender("plain threshold, unaligned")
def plain_threshold(task: Task, output: Path) -> dict[str, float]:
    """One threshold on |γ| over stem, c1 and c2, at least 3 channels a layer: the lowest that meets the
    budget.
    """
    parent = load_checkpoint(task.source)
    started = time.perf_counter()
    groups = channel_groups(parent.info.spec)
    scores = channel_scores(Evidence(parent.network, None, 0), groups, "gamma")
    values = np.sort(np.concatenate(list(scores.values())))

    def cut(index: int) -> ResNet:
        counts = {n: max(min(3, len(s)), int((s >= values[index]).sum())) for n, s in scores.items()}
        kept = {name: best_channels(scores[name], count) for name, count in counts.items()}
        return prune_network(parent.network, groups, kept, fold=False)[0]

    index = _first(len(values) - 1, lambda i: network_cost(cut(i).spec, 32).params <= task.params)
    return _finish(parent, cut(index), task, output, time.perf_counter() - started)


def _torch_pruning(importance_name: str, round_to: int | None, macs: float | None = None) -> Contender:
    def run(task: Task, output: Path) -> dict[str, float]:
        import torch_pruning

        parent = load_checkpoint(task.source)
        example = torch.randn(1, 3, parent.info.preprocessing.size, parent.info.preprocessing.size)
        importance = {
            "BN-scale": torch_pruning.importance.BNScaleImportance,
            "group-norm": lambda: torch_pruning.importance.MagnitudeImportance(p=2),
        }[importance_name]()

        def guarded(group: Any, **options: Any) -> torch.Tensor | None:
            """Without it no ratio meets the budget: a layer of zeros alone has NaN as importance by BN scale,
            and one that would lose all its channels stays as wide as it was.
            """
            found = importance(group, **options)
            if found is None:
                return None
            found = torch.nan_to_num(found)
            found[found.topk(min(round_to or 3, len(found))).indices] = torch.inf
            return found

        def cut(step: int) -> ResNet:
            network = copy.deepcopy(parent.network)
            pruner = torch_pruning.pruner.BasePruner(
                network, example, importance=guarded, global_pruning=True, pruning_ratio=step / 200,
                max_pruning_ratio=1.0, round_to=round_to, ignored_layers=[network.fc],
            )  # fmt: skip
            pruner.step()
            return _as_pruned(network)

        def fits(step: int) -> bool:
            cost = network_cost(cut(step).spec, 32)
            return cost.macs <= macs if macs else cost.params <= task.params

        started = time.perf_counter()
        cut(100)
        seconds = time.perf_counter() - started  # one cut; the search for the ratio isn't counted
        return _finish(parent, cut(_first(199, fits)), task, output, seconds)

    return run


for _importance in ("BN-scale", "group-norm"):
    for _round_to in (None, 8):
        _name = f"Torch-Pruning {_importance}" + (f", round_to={_round_to}" if _round_to else "")
        CONTENDERS[_name] = _torch_pruning(_importance, _round_to)
CONTENDERS["Torch-Pruning BN-scale, round_to=8, 64 M MACs"] = _torch_pruning("BN-scale", 8, macs=64e6)


def _as_pruned(network: ResNet) -> ResNet:
    """A network of the widths that Torch-Pruning has left in `network`, with its weights."""
    widths = [network.conv1.out_channels]
    for block in enumerate_layers(network.spec, 32).blocks:
        widths += [network.conv(conv.name).out_channels for conv in block.convs]
    config = ChannelConfig.from_flat(network.spec.architecture, widths)
    found = ResNet(network.spec.with_channels(config))
    found.load_state_dict(network.state_dict())
    return found.eval()


def _finish(parent: Checkpoint, pruned: ResNet, task: Task, output: Path, seconds: float) -> dict[str, float]:
    """Accuracies of `pruned`, which is recalibrated and written."""
    dataset = dataset_for(parent.info, task.data, task.source)
    found = {"cut": _accuracy(pruned, dataset), "seconds": seconds}
    images = balanced_subset(dataset.train, RECALIBRATION_IMAGES)
    recalibrate(pruned, images, dataset.preprocessing, device="cpu")
    found["recalibrated"] = _accuracy(pruned, dataset)
    info = parent.info.after("prune", spec=pruned.spec, metrics={}, data=task.data.to_json())
    save_checkpoint(output, pruned, info)
    return found


def _accuracy(network: ResNet, dataset: Dataset) -> float:
    return evaluate_network(network, dataset.test, dataset.preprocessing, device="cpu").accuracy


def _first(highest: int, fits: Callable[[int], bool]) -> int:
    """The lowest number up to `highest` for which `fits`; looked for from below, since a layer that rounding
    leaves without channels stays as it was, and networks grow again at the highest ratios.
    """
    strides = range(0, highest + 1, max(1, highest // 20))
    high = next((number for number in (*strides, highest) if fits(number)), None)
    if high is None:
        raise click.ClickException("no ratio meets the budget")
    low = max(0, high - strides.step)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def _named(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def _carry_out(name: str, task: Task, work: Path, options: TrainOptions | None) -> dict[str, Any]:
    """One contender from the checkpoint to ONNX; what lies in `work` already is read instead.

    Fine-tuned with `options` where they are given; a network that was fine-tuned stays so.
    """
    slug = "".join(c if c.isalnum() else "-" for c in name.lower())
    pruned, final, record = (work / f"{slug}{end}" for end in (".safetensors", ".final.safetensors", ".json"))
    log(f"{name} …")
    if not record.exists():
        artifacts.write_json(record, CONTENDERS[name](task, pruned))
    found = artifacts.read_json(record, "record of a contender")
    if options and "finetuned" not in found:
        tuned = finetune_stage(
            pruned, data=task.data, options=options, output=final, device="cpu",
            resume=state_path(final).exists(), force=True,
        )  # fmt: skip
        found["finetuned"] = tuned.accuracy["test"]
        artifacts.write_json(record, found)
    onnx = work / f"{slug}.onnx"
    export_stage(
        final if "finetuned" in found else pruned,
        options=ExportOptions(),
        output=onnx,
        data=task.data,
        force=True,
    )
    return {**found, "onnx": onnx}


COLUMNS = {
    "contender": "who pruned",
    "params": "parameters",
    "macs": "multiply-accumulates for one image",
    "cut": "test accuracy right after the cut, nothing else done",
    "mended": "the same after folding and compensation, where the contender has it",
    "recalibrated": "the same after recalibration of the BN statistics on 5,120 training images",
    "finetuned": "test accuracy after fine-tuning",
    "batch_1_ms": "median latency at batch 1, onnxruntime, ms",
    "batch_1_speedup": "median latency of the original over it",
    "batch_1_realised": "speed-up over MAC ratio",
    "batch_64_ms": "median latency at batch 64, onnxruntime, ms",
    "batch_64_speedup": "median latency of the original over it",
    "batch_64_realised": "speed-up over MAC ratio",
    "seconds": "time to prune: scoring, selection and cut (with the measuring of activations, where used)",
}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--data", required=True)
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path("data"))
@click.option("--params", type=Amount(), default="3.94M", show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True, help="Of fine-tuning.")
@click.option("--limit", type=int, help="Fine-tune on a balanced subset.")
@click.option("--only", multiple=True, help="Contenders, by a part of their name.")
@click.option("--finetune", multiple=True, help="Those of them to fine-tune [default: all].")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="Timed running for each model.")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(
    checkpoint: Path, data: str, data_dir: Path, params: float, epochs: int, limit: int | None,
    only: tuple[str, ...], finetune: tuple[str, ...], seconds: float, work: Path, output: Path,
) -> None:  # fmt: skip
    """Run all contenders on CHECKPOINT and write a `table` result."""
    task = Task(checkpoint, DataOptions(data, data_dir), params, 0)
    options = TrainOptions(
        epochs=epochs, lr=0.02, batch_size=128, validation=0.002, flip_mode="alternating", limit=limit
    )
    names = [name for name in CONTENDERS if not only or _named(name, only)]
    work.mkdir(parents=True, exist_ok=True)
    original = work / "original.onnx"
    export_stage(checkpoint, options=ExportOptions(), output=original, data=task.data, force=True)
    found = {
        name: _carry_out(name, task, work, options if not finetune or _named(name, finetune) else None)
        for name in names
    }
    subjects = subjects_for([original, *(f["onnx"] for f in found.values())], ["onnxruntime"], _sessions())
    bench = measure(
        subjects, BenchOptions((1, 64), TimingOptions(seconds=seconds)), find_surroundings(None, log)
    )
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

    return SessionOptions(device="cpu")


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
            row[f"batch_{one['batch']}_realised"] = one["realised"]
    return row


if __name__ == "__main__":
    main()
