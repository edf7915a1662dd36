"""The pieces of `gpu_chain` as data: one command with one JSON result each, ordered by importance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

CHECKPOINT = ".safetensors"
CHECKS = {
    "graph": (5, ("torch-graph",)),
    "onnxruntime": (6, ("onnxruntime",)),
    "torch": (5, ("torch",)),
    "compiled": (8, ("torch-compiled",)),
    "tests": (4, ("tests", "kernels")),
    "tensorrt": (6, ("tensorrt", "tensorrt-no-graph")),
}
"""Pieces of `gpu_check`: their minutes and parts."""
GPU_CHECK = "slimdeploy.benchmarks.gpu_check"
CUT_BY_TORCH_PRUNING = "slimdeploy.benchmarks.peers.torch_pruning_cut"
SURGEON = ("--criterion", "surgeon", "--residual", "couple")
SEEDS = (0, 1, 2)
TAUGHT = ((5, SEEDS[:1]), (20, SEEDS[:1]), (1, SEEDS), (5, SEEDS[1:]))
"""Epochs of fine-tuning with distillation, and the seeds, the most important first."""


@dataclass(frozen=True)
class Piece:
    """One command of `module`. Words that end in `CHECKPOINT` or `.onnx` are files of the work folder."""

    name: str
    minutes: float
    """On an H100, roughly. A training that takes longer continues in the next call."""
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """Pieces whose files it reads."""
    module: str = "slimdeploy.toolchain"
    alone: bool = False
    """Whether it times something, so that nothing may run beside it."""

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint that it writes."""
        written = self.words[-1] if self.words[-2:-1] == ("-o",) else ""
        return written if written.endswith(CHECKPOINT) else None

    @property
    def trains(self) -> bool:
        """Whether it trains a network from the beginning."""
        return self.words[0] == "train"

    @property
    def resumes(self) -> bool:
        """Whether its command can be stopped and continues with `--resume`."""
        return self.words[0] in ("train", "finetune")


@dataclass(frozen=True)
class Scale:
    """Sizes of all pieces."""

    deep: str
    shallow: str
    small: tuple[str, ...]
    """Parameters of the small networks."""
    epochs: int
    """Of the reference's fine-tuning."""
    long_epochs: int
    """Of the trainings that end where accuracy stands still."""
    shallow_epochs: int
    params: str
    """Parameters of the pruned network."""
    macs: tuple[str, ...]
    """MACs of the networks that are compared with Torch-Pruning's; Torch-Pruning cuts to the first."""
    sparse_macs: tuple[str, ...]
    """MACs to which Torch-Pruning cuts the sparse network: about those of slimdeploy's networks with
    `params` parameters, by γ and by the surgeon.
    """
    data: tuple[str, ...]
    training: tuple[str, ...]
    """Additional options of every training."""
    compiled: tuple[str, ...]
    """Additional options of trainings that are long enough to compile."""
    timing: tuple[str, ...]


FULL = Scale(
    deep="resnet50", shallow="resnet18", small=("0.837M", "0.6M"),
    epochs=20, long_epochs=80, shallow_epochs=200, params="3.94M", macs=("64M", "40M"),
    sparse_macs=("123M", "171M"), data=("--data", "folder:cifar10-jpeg"), training=(),
    compiled=("--compile",), timing=("--ci", "0.5"),
)  # fmt: skip
TINY = Scale(
    deep="resnet18", shallow="resnet18", small=("1M", "0.8M"),
    epochs=1, long_epochs=1, shallow_epochs=1, params="8M", macs=("1.5M", "1M"),
    sparse_macs=("1.5M", "1M"), data=("--data", "digits", "--size", "8"),
    training=("--limit", "64", "--precision", "fp32"), compiled=(), timing=("--seconds", "0.01"),
)  # fmt: skip
"""For a CPU: checks only that the commands work together."""


def pieces(scale: Scale) -> tuple[Piece, ...]:
    """All pieces, the most important first; each after those that it needs."""
    return (
        *_well_trained(scale),
        *_compared(scale),
        *_headline(scale),
        *_gpu_checks(scale),
        *_small_networks(scale),
        *_shallow(scale),
    )


def _well_trained(scale: Scale) -> Iterator[Piece]:
    """An original that stands still, and the same trained sparse."""
    mixed = ("--cutmix", "1")
    sparse = ("--sparsity", "1e-4", "--sparse-layers", "all", "--no-shrink")
    yield _train(scale, "original", 6, _reference(scale), scale.long_epochs, mixed)
    yield _train(scale, "sparse", 6, _reference(scale), scale.long_epochs, (*mixed, *sparse))


def _compared(scale: Scale) -> Iterator[Piece]:
    """The original pruned by slimdeploy and by Torch-Pruning to the same MACs, and fine-tuned with the same
    distillation for several lengths.
    """
    names = []
    for macs in scale.macs:
        names.append(f"surgeon-{macs}")
        how = ("--macs", macs, *SURGEON, "--align", "32")
        yield _prune(scale, names[-1], "original", how)
    for importance in ("BN-scale", "group-norm"):
        names.append(f"torch-pruning-{importance}")
        yield _cut_by_torch_pruning(scale, names[-1], "original", importance, scale.macs[0])
    for epochs, seeds in TAUGHT:
        for seed in seeds:
            taught = ("--lr", "0.02", "--teacher", f"original{CHECKPOINT}", "--seed", str(seed))
            for name in names:
                ending = f"{epochs}-seed-{seed}"
                yield _finetune(scale, name, 0.2 * epochs, min(epochs, scale.epochs), taught, ending)


def _headline(scale: Scale) -> Iterator[Piece]:
    """Prunings of the sparse network, with the reference's fine-tuning and a short one at a higher rate, and
    the control: the original trained for as many more epochs.
    """
    yield _long(scale, "original")
    for criterion, how in (("surgeon", SURGEON), ("gamma", ())):
        yield _prune(scale, f"sparse-{criterion}", "sparse", ("--params", scale.params, *how))
    peers = {f"sparse-torch-pruning-{macs}": macs for macs in scale.sparse_macs}
    for name, macs in peers.items():
        yield _cut_by_torch_pruning(scale, name, "sparse", "BN-scale", macs)
    names = ("sparse-surgeon", "sparse-gamma", *peers)
    for name in names:
        yield _long(scale, name)
    for name in ("original", *names):
        yield _finetune(scale, name, 1.5, max(1, scale.epochs // 4), ("--lr", "0.02"), "tuned-short")
    by_ratio = {"sparse-90": "0.9", "sparse-50": "0.5"}
    for name, ratio in by_ratio.items():
        yield _prune(scale, name, "sparse", ("--ratio", ratio))
    for seed in SEEDS:
        for name in by_ratio:
            yield _long(scale, name, seed)


def _long(scale: Scale, source: str, seed: int = 0) -> Piece:
    """The reference's fine-tuning."""
    options = ("--lr", "1e-3", "--seed", str(seed))
    return _finetune(scale, source, 6, scale.epochs, options, f"tuned-long-seed-{seed}")


def _reference(scale: Scale) -> tuple[str, ...]:
    """Network and data of the reference."""
    return ("--arch", scale.deep, "--stem", "cifar-pool", *scale.data)


def _small_networks(scale: Scale) -> Iterator[Piece]:
    """The stem at full resolution: trained to a tenth of its channels, and pruned to the smallest network
    with the same accuracy.
    """
    options = ("--sparsity", "auto:0.9", "--ema", "0.999", "--label-smoothing", "0.1")
    where = ("--arch", scale.deep, "--stem", "cifar", *scale.data)
    yield _train(scale, "cifar-stem", 8, where, scale.long_epochs, options)
    for params in scale.small:
        pruned = f"cifar-stem-{params}"
        how = ("--params", params, *SURGEON)
        yield _prune(scale, pruned, "cifar-stem", how)
        tuned = ("--lr", "0.02", "--teacher", f"cifar-stem{CHECKPOINT}", "--ema", "0.999")
        yield _finetune(scale, pruned, 8, scale.epochs, tuned)


def _shallow(scale: Scale) -> Iterator[Piece]:
    """The recipe cifar10-resnet18."""
    where = ("--arch", scale.shallow, "--stem", "cifar", *scale.data)
    options = ("--schedule", "step", "--patience", "20", "--validation", "0.2")
    yield _train(scale, "resnet18", 8, where, scale.shallow_epochs, options)


def _gpu_checks(scale: Scale) -> Iterator[Piece]:
    """`gpu_check` of original and pruned network, and the result of TensorRT's builder on this GPU."""
    final = "sparse-surgeon-tuned-long-seed-0"
    pair = ("--original", f"original{CHECKPOINT}", "--pruned", f"{final}{CHECKPOINT}", *scale.data[:2])
    for name, (minutes, parts) in CHECKS.items():
        words = (*(word for part in parts for word in ("--part", part)), *pair, *scale.timing)
        yield Piece(f"gpu-check-{name}", minutes, words, ("original", final), GPU_CHECK, alone=True)
    yield Piece("onnx", 0.5, ("export", f"{final}{CHECKPOINT}", "-o", "final.onnx"), (final,))
    engine = ("export", "final.onnx", "--trt", "-o", "final.engine")
    yield Piece("engine", 2, engine, ("onnx",), alone=True)


def _train(
    scale: Scale, name: str, minutes: float, where: tuple[str, ...], epochs: int, options: tuple[str, ...]
) -> Piece:
    how = ("--epochs", str(epochs), *options, *scale.training, *scale.compiled)
    return Piece(name, minutes, ("train", *where, *how, "-o", f"{name}{CHECKPOINT}"))


def _prune(scale: Scale, name: str, source: str, options: tuple[str, ...]) -> Piece:
    words = ("prune", f"{source}{CHECKPOINT}", *options, *scale.data, "-o", f"{name}{CHECKPOINT}")
    return Piece(name, 0.5, words, (source,))


def _cut_by_torch_pruning(scale: Scale, name: str, source: str, importance: str, macs: str) -> Piece:
    words = (f"{source}{CHECKPOINT}", "--importance", importance, "--macs", macs, *scale.data,
             "-o", f"{name}{CHECKPOINT}")  # fmt: skip
    return Piece(name, 3, words, (source,), CUT_BY_TORCH_PRUNING)


def _finetune(
    scale: Scale, source: str, minutes: float, epochs: int, options: tuple[str, ...], ending: str = "tuned"
) -> Piece:
    """Long ones are compiled and keep the augmentation of the training; short ones go without CutMix."""
    name = f"{source}-{ending}"
    by_length = scale.compiled if epochs >= scale.epochs else ("--cutmix", "0")
    how = ("--epochs", str(epochs), *options, *by_length, *scale.training)
    words = ("finetune", f"{source}{CHECKPOINT}", *how, "-o", f"{name}{CHECKPOINT}")
    teachers = [word.removesuffix(CHECKPOINT) for flag, word in pairwise(options) if flag == "--teacher"]
    return Piece(name, minutes, words, (source, *(one for one in teachers if one != source)))
