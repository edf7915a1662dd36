"""Any CNN: every classifier of torchvision that is one, and some of timm's, imported, pruned to half of its
MACs, exported and quantised, with Torch-Pruning on the same networks beside it.

    python -m slimdeploy.benchmarks.peers.families --work DIR --output families.json

Each network has random weights, γ, β and statistics, and is measured in a process of its own; rows that DIR
holds aren't measured again. torch_pruning and timm are not installed with slimdeploy.
"""

from __future__ import annotations

import copy
import functools
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from slimdeploy.benchmarks.peers.families_torch_pruning import exports, prune_to_half
from slimdeploy.calibrate.classifier import classifier
from slimdeploy.calibrate.collect import collect, collect_widths
from slimdeploy.calibrate.equalisation import equalise, tensors_to_equalise
from slimdeploy.calibrate.options import CalibrateOptions
from slimdeploy.calibrate.quantiser import Quantiser
from slimdeploy.toolchain.cli import run_program
from slimdeploy.toolchain.errors import shorten
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.models.named_networks import foreign_module, imported_network
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.networks.cutting import keep_masks
from slimdeploy.toolchain.networks.module import GraphNetwork
from slimdeploy.toolchain.networks.residual import batchnorm_behind
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.pruning.plan import budget_for, choose_channels, plan_groups, score_channels
from slimdeploy.toolchain.pruning.selection import Kept
from slimdeploy.toolchain.pruning.surgery import prune_network
from slimdeploy.toolchain.torchvision import import_torchvision

FAMILIES = (
    "alexnet", "convnext", "densenet", "efficientnet", "googlenet", "inception", "mnasnet", "mobilenet",
    "regnet", "resnet", "resnext", "shufflenet", "squeezenet", "vgg", "wide_resnet",
)  # fmt: skip
"""Families of torchvision's classifiers: all except the transformers."""
TIMM = (
    "resnet50d", "resnext50_32x4d", "wide_resnet50_2", "regnetx_002", "regnety_002", "mobilenetv3_small_100",
    "efficientnet_b0",
)  # fmt: skip
CLASSES = 10
COLUMNS = {
    "network": "name",
    "size": "image side, pixels",
    "nodes": "operators of the graph",
    "import_s": "seconds to build and import it",
    "import_error": "largest difference of a logit to the original's, relative to the largest logit",
    "groups": "prunable widths, coupled",
    "macs": "share of the MACs left after pruning to a half",
    "mask_error": "removed against masked channels, as import_error",
    "onnx_error": "ONNX on onnxruntime against torch, as import_error",
    "int8_cpu": "INT8 for the CPU runs: relative error of its logits (RMS), or why not",
    "int8_tensorrt": "INT8 for TensorRT runs on onnxruntime: as int8_cpu",
    "builds_fp32": "NVIDIA's builder accepts FP32",
    "builds_int8": "NVIDIA's builder accepts INT8",
    "peer_prunes": "Torch-Pruning prunes it to half of its MACs and the result runs, or why not",
    "peer_exports": "one of torch.onnx.export's two exporters writes the result, or why not",
}


def names() -> list[str]:
    """The networks to measure."""
    models = import_torchvision().models
    own = [name for name in models.list_models(module=models) if name.startswith(FAMILIES)]
    return [f"torchvision:{name}" for name in own] + [f"timm:{name}" for name in TIMM]


def size_of(name: str) -> int:
    """Image side in pixels: small for speed, and a multiple of 32. Inception needs at least 75."""
    return 128 if "inception" in name else 64


@torch.no_grad()
def randomise(network: torch.nn.Module) -> None:
    """Set random γ, β and statistics: the initial values 1 and 0 would hide errors."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in network.state_dict().items():
        if tensor.dim() == 1 and tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith("running_var") else (-0.3, 1.0)
            tensor.uniform_(low, high, generator=generator)


def half_of_the_macs(network: GraphNetwork, size: int) -> Kept:
    """The channels kept when pruning to half of the MACs, residual sums coupled, by the criterion `l2`."""
    macs = network_cost(network.graph, size).macs / 2
    options = PruneOptions(macs=macs, residual="couple", criterion="l2", align=8)
    groups = plan_groups(network.graph, options)
    budget = budget_for(network.graph, groups, options, size)
    return choose_channels(network.graph, score_channels(network, None, options), options, budget)


@torch.no_grad()
def masked(network: GraphNetwork, kept: Kept) -> GraphNetwork:
    """A copy with γ and β of the removed channels set to zero; without BN, their filters and biases."""
    masks = keep_masks(network.graph, channel_groups(network.graph, residual="couple"), kept)
    found = copy.deepcopy(network)
    for node in network.graph.nodes:
        makes = node.op.reads_all(node) and batchnorm_behind(network.graph, node) is None
        if makes or node.operator == "batchnorm":
            for part in ("weight", "bias"):
                if part in (tensors := found.tensors(node.name)):
                    tensors[part][torch.from_numpy(~masks[node.name])] = 0
    return found


def relative(found: Tensor | np.ndarray, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return float((torch.as_tensor(found) - expected).abs().max() / expected.abs().max())


def measure(name: str) -> dict[str, Any]:
    """The row of one network."""
    size = size_of(name)
    started = time.perf_counter()
    found = imported_network(name, size=size, classes=CLASSES)
    row: dict[str, Any] = {"network": name, "size": size, "nodes": len(found.network.graph.nodes)}
    row |= {"import_s": round(time.perf_counter() - started, 1), "import_error": found.relative_error}
    network = found.network
    randomise(network)
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(2))
    kept, groups = half_of_the_macs(network, size), channel_groups(network.graph, residual="couple")
    pruned, _ = prune_network(network, groups, kept, fold=False)
    macs = network_cost(pruned.graph, size).macs / network_cost(network.graph, size).macs
    with torch.no_grad():
        expected = pruned(images)
        row |= {
            "groups": len(groups),
            "macs": macs,
            "mask_error": relative(expected, masked(network, kept)(images)),
        }
    model = build_onnx(pruned, _info(pruned, size), opset=17)
    row["onnx_error"] = relative(_run(model.SerializeToString(), images), expected)
    row |= _quantised(model, images, expected)
    return row | _peer(name, images)


def _info(network: GraphNetwork, size: int) -> ModelInfo:
    names = tuple(f"class {i}" for i in range(CLASSES))
    return ModelInfo(network.graph, Preprocessing(size, (0.5,) * 3, (0.5,) * 3), names)


def _run(model: bytes, images: Tensor) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images.numpy()})[0])


def _quantised(model: Any, images: Tensor, expected: Tensor) -> dict[str, Any]:
    """The INT8 columns for both forms, calibrated on `images`, and whether NVIDIA's builder accepts FP32 and
    INT8.
    """
    source, batch = classifier(model, source="the export"), images.numpy()
    widths = collect_widths(source, tensors_to_equalise(source), [batch])
    even = equalise(source, widths)
    histograms = collect(even, [batch])
    row: dict[str, Any] = {"builds_fp32": _builds(model.SerializeToString())}
    for target in ("cpu", "tensorrt"):
        quantiser = Quantiser(even, histograms, CalibrateOptions(target=target))
        made = _attempt(functools.partial(_finished, quantiser))
        if isinstance(made, bytes):
            row[f"int8_{target}"] = _attempt(functools.partial(_int8_error, made, images, expected))
            if target == "tensorrt":
                row["builds_int8"] = _builds(made)
        else:
            row[f"int8_{target}"] = made
    return {"builds_int8": "no INT8 model", **row}


def _finished(quantiser: Quantiser) -> bytes:
    return quantiser.model("minmax", frozenset()).SerializeToString()


def _int8_error(model: bytes, images: Tensor, expected: Tensor) -> float:
    error = torch.from_numpy(_run(model, images)) - expected
    return float(error.square().mean().sqrt() / expected.square().mean().sqrt())


def _builds(model: bytes) -> bool | str:
    from slimdeploy.toolchain.export.trt_cpu import load

    trt = load()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        return str(parser.get_error(0).desc())[:100]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    shape = network.get_input(0).shape
    profile.set_shape("images", (1, *shape[1:]), (8, *shape[1:]), (8, *shape[1:]))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


def _peer(name: str, images: Tensor) -> dict[str, Any]:
    """Torch-Pruning on the same network: magnitude importance, half of the MACs, as in its README."""
    prunes = _attempt(lambda: prune_to_half(_random_module(name), images, CLASSES))
    if not isinstance(prunes, torch.nn.Module):
        return {"peer_prunes": prunes, "peer_exports": "nothing to export"}

    written = _attempt(functools.partial(exports, prunes, images, dynamo=False))
    if written is not True:
        written = _attempt(functools.partial(exports, prunes, images, dynamo=True))
    return {"peer_prunes": True, "peer_exports": written}


def _random_module(name: str) -> torch.nn.Module:
    module = foreign_module(name, classes=CLASSES).eval()
    randomise(module)
    return module


def _attempt(work: Callable[[], Any]) -> Any:
    """The result of `work`, or its error as text, so that a failed network appears in the table."""
    try:
        return work()
    except Exception as error:  # whatever a peer or a runtime raises
        return f"{type(error).__name__}: {shorten(error, 120)}"


@click.command(help=__doc__)
@click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="Folder that keeps finished rows."
)
@click.option("--only", metavar="NAME", multiple=True, help="These networks only.")
@click.option("--seconds", type=int, default=600, show_default=True, help="Limit for one network.")
@click.option("--one", hidden=True, help="Measure this network and print its row.")
@click.option("-o", "--output", type=click.Path(path_type=Path))
def main(work: Path, only: tuple[str, ...], seconds: int, one: str | None, output: Path | None) -> None:
    if one:
        torch.set_num_threads(1)
        click.echo(json.dumps(measure(one)))
        return
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in only or names():
        kept = work / f"{name.replace(':', '-')}.json"
        if not kept.is_file():
            kept.write_text(json.dumps(_in_a_process(name, work, seconds)))
        rows.append({**dict.fromkeys(COLUMNS), **json.loads(kept.read_text())})
        click.echo(json.dumps(rows[-1]), err=True)
    if output:
        command = shlex.join(["python", "-m", "slimdeploy.benchmarks.peers.families", *sys.argv[1:]])
        title = "Any CNN: import, pruning to half of the MACs, ONNX and INT8, at random weights"
        document = results.document("table", command=command, title=title, columns=COLUMNS, rows=rows)
        results.write(output, document)


def _in_a_process(name: str, work: Path, seconds: int) -> dict[str, Any]:
    module = "slimdeploy.benchmarks.peers.families"
    command = [sys.executable, "-m", module, "--work", str(work), "--one", name]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"network": name, "import_s": f"not finished in {seconds} s"}
    if ran.returncode:
        last = [line for line in ran.stderr.splitlines() if line.strip()][-1:]
        return {"network": name, "import_s": f"failed: {''.join(last)[:200]}"}
    return dict(json.loads(ran.stdout.splitlines()[-1]))


if __name__ == "__main__":
    run_program(main, "families")
