"""The whole chain on networks that aren't ResNets, beside Torch-Pruning: train, prune to half of the MACs,
fine-tune, INT8, bench.

    pip install torch-pruning==1.6.1
    python benchmarks/peers/chains.py --data folder:data/cifar10-jpeg --limit 10000 --work runs/chains \\
        --output benchmarks/results/chains.json

Every step of slimdeploy's is its command, as a user would type it. Torch-Pruning cuts the same trained
network to the same MACs, and is recalibrated and fine-tuned alike. Finished steps found in `--work` are not
repeated.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
from pruner_contenders import Task, by_torch_pruning

from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.progress import log

NETWORKS = {"torchvision:mobilenet_v2": 12, "torchvision:regnet_y_400mf": 12, "torchvision:vgg11_bn": 6}
"""Epochs of training by network; a VGG has 129 M parameters and needs fewer."""
COLUMNS = {
    "network": "name",
    "epochs": "of training",
    "variant": "what was done to it",
    "params": "parameters",
    "macs": "multiply-accumulates for one image",
    "after_cut": "test accuracy after the cut and its repair, before any training",
    "accuracy": "test accuracy of the written ONNX file",
    **{f"batch_{batch}_{what}": text for batch in (1, 64) for what, text in (
        ("ms", f"median latency at batch {batch}, onnxruntime, ms"),
        ("speedup", "how many times as fast as the original"),
        ("low", "lower end of its 95 % interval"),
        ("high", "upper end of it"),
    )},
}  # fmt: skip


def slimdeploy(*arguments: object, resume: Path | None = None) -> dict[str, Any]:
    """The JSON output of one command; `resume` is the output file of a training that may be unfinished."""
    command = [str(Path(sys.executable).parent / "slimdeploy"), *map(str, arguments), "--json"]
    if resume and list(resume.parent.glob(f"{resume.name}*state*")):
        command.append("--resume")
    log(shlex.join(command))
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ran.returncode:
        raise click.ClickException(f"`{shlex.join(command)}` ended with {ran.returncode}")
    return dict(json.loads(ran.stdout))


def chain(network: str, options: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The rows of one network: the original, the one pruned by slimdeploy, the same in INT8, and the one
    pruned by Torch-Pruning.
    """
    epochs = options["epochs"] or NETWORKS.get(network, 12)
    data, limit, threads = options["data"], options["limit"], ["--threads", options["threads"]]
    trained, ours, theirs = (folder / f"{name}.safetensors" for name in ("trained", "pruned", "peer"))
    finals = [path.with_suffix(".final.safetensors") for path in (ours, theirs)]
    if not trained.exists():
        slimdeploy("train", "--arch", network, "--data", data, "--size", 32, "--limit", limit, "--epochs",
                   epochs, "--batch-size", options["batch_size"], "--lr", options["lr"], *threads,
                   "-o", trained, resume=trained)  # fmt: skip
    info = load_checkpoint(trained).info
    macs = network_cost(info.graph, info.preprocessing.size).macs / 2
    if not ours.exists():
        cut = slimdeploy("prune", trained, "--macs", int(macs), "--criterion", "surgeon", "--residual",
                         "couple", "--data", data, *threads, "-o", ours)  # fmt: skip
        _note(folder, "ours", cut["accuracy"]["final"])
    if not theirs.exists():
        task = Task(trained, DataOptions(data, Path("data")), 0, Path(), size=info.preprocessing.size)
        _note(folder, "theirs", by_torch_pruning("group-norm", 8, macs)(task, theirs)["recalibrated"])
    for source, final in zip((ours, theirs), finals, strict=True):
        if not final.exists():
            slimdeploy("finetune", source, "--epochs", options["tuning"], "--batch-size",
                       options["batch_size"], "--lr", options["tuning_lr"], "--limit", limit, *threads,
                       "-o", final, resume=final)  # fmt: skip
    return _measured(network, epochs, [trained, *finals], data, folder, options)


def _note(folder: Path, name: str, accuracy: float) -> None:
    (folder / f"{name}.cut.json").write_text(json.dumps(accuracy))


def _measured(
    network: str,
    epochs: int,
    checkpoints: list[Path],
    data: str,
    folder: Path,
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    original, ours, theirs = (path.with_suffix(".onnx") for path in checkpoints)
    for source, output in zip(checkpoints, (original, ours, theirs), strict=True):
        slimdeploy("export", source, "-o", output, "--force")
    int8 = ours.with_suffix(".int8.onnx")
    slimdeploy("calibrate", ours, "--target", "cpu", "-o", int8, "--force")
    bench = slimdeploy("bench", original, ours, int8, theirs, "--data", data, "--threads", 1, "--seconds",
                       options["seconds"], "-o", folder / "bench.json", "--force")  # fmt: skip
    cuts = {"slimdeploy": "ours", "Torch-Pruning": "theirs"}
    variants = {original: "original", ours: "slimdeploy", int8: "slimdeploy, INT8", theirs: "Torch-Pruning"}
    rows = []
    for path, variant in variants.items():
        row = dict.fromkeys(COLUMNS) | {"network": network, "epochs": epochs, "variant": variant}
        if variant in cuts:
            row["after_cut"] = json.loads((folder / f"{cuts[variant]}.cut.json").read_text())
        for one in (one for one in bench["rows"] if one["model"] == str(path)):
            row |= {"params": one["params"], "macs": one["macs"], "accuracy": one["accuracy"]}
            row[f"batch_{one['batch']}_ms"] = one["latency_ms"]["p50"]
        for one in (one for one in bench["comparisons"] if one["model"] == str(path)):
            at = f"batch_{one['batch']}"
            row |= {f"{at}_speedup": one["speedup"]}
            row |= dict(zip((f"{at}_low", f"{at}_high"), one["ci95"], strict=True))
        rows.append(row)
    return rows


@click.command(help=__doc__)
@click.option("--data", required=True)
@click.option("--limit", type=int, default=10000, show_default=True, help="Training images.")
@click.option("--epochs", type=int, help="Of training.  [default: 6 for the VGG, else 12]")
@click.option("--lr", type=float, default=0.05, show_default=True, help="Of training.")
@click.option("--tuning", type=int, default=5, show_default=True, help="Epochs of fine-tuning.")
@click.option("--tuning-lr", type=float, default=0.01, show_default=True, help="Of fine-tuning.")
@click.option("--batch-size", type=int, default=64, show_default=True, help="Of both.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Timed running for each model.")
@click.option("--threads", type=int, default=2, show_default=True, help="Of training.")
@click.option("--only", multiple=True, help="Networks, by name.")
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(only: tuple[str, ...], work: Path, output: Path, **options: Any) -> None:
    rows = []
    for network in only or NETWORKS:
        folder = work / network.replace(":", "-")
        folder.mkdir(parents=True, exist_ok=True)
        rows += chain(network, options, folder)
    command = shlex.join(["python", "benchmarks/peers/chains.py", *sys.argv[1:]])
    length = f"on {options['limit']} images, {options['tuning']} epochs of fine-tuning"
    title = f"Any CNN, the whole chain to half of the MACs, {length}"
    results.write(output, results.document("table", command=command, title=title, columns=COLUMNS, rows=rows))


if __name__ == "__main__":
    run_program(main, "chains")
