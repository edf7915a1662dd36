"""The pieces of `gpu_chain` as data: one command with one JSON result each, ordered by importance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CHECKPOINT = ".safetensors"
PARTS = {
    "torch": 4, "torch-graph": 4, "torch-compiled": 6, "onnxruntime": 4, "kernels": 1, "tests": 4,
    "tensorrt": 6,
}  # fmt: skip
"""Parts of `gpu_check`, and their minutes."""


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

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint that it writes."""
        written = self.words[-1] if self.words[-2:-1] == ("-o",) else ""
        return written if written.endswith(CHECKPOINT) else None

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
    """Of the reference's training and fine-tuning."""
    long_epochs: int
    shallow_epochs: int
    data: tuple[str, ...]
    training: tuple[str, ...]
    """Additional options of every training."""
    timing: tuple[str, ...]


FULL = Scale(
    deep="resnet50", shallow="resnet18", small=("3.94M", "0.837M", "0.6M"),
    epochs=20, long_epochs=60, shallow_epochs=200, data=("--data", "folder:cifar10-jpeg"),
    training=(), timing=(),
)  # fmt: skip
TINY = Scale(
    deep="resnet18", shallow="resnet18", small=("8M", "5M", "4M"),
    epochs=1, long_epochs=1, shallow_epochs=1, data=("--data", "digits", "--size", "8"),
    training=("--limit", "64", "--precision", "fp32"), timing=("--seconds", "0.01"),
)  # fmt: skip
"""For a CPU: checks only that the commands work together."""


def pieces(scale: Scale) -> tuple[Piece, ...]:
    """All pieces, the most important first; each after those that it needs."""
    return (
        *_reference(scale, "1e-4", 0, ratios=(0.9,)),
        *_gpu_checks(scale),
        *_reference(scale, "0", 0, ratios=()),
        *_reference(scale, "auto:0.9", 0, ratios=(0.9, 0.5)),
        *_reference(scale, "1e-4", 0, ratios=(0.5,), trained=True),
        *_reference(scale, "1e-4", 1, ratios=(0.9,)),
        *_reference(scale, "1e-4", 2, ratios=(0.9,)),
        *_small_networks(scale),
        *_shallow(scale),
    )


def _reference(
    scale: Scale, sparsity: str, seed: int, *, ratios: tuple[float, ...], trained: bool = False
) -> Iterator[Piece]:
    """Sparse training, and for each ratio pruning and fine-tuning, as in the recipe cifar10-resnet50.

    `trained`: the training is a separate piece.
    """
    name = f"lambda-{sparsity.replace(':', '-')}-seed-{seed}"
    drawn = ("--seed", str(seed))
    if not trained:
        options = ("--sparsity", sparsity, *(() if "auto" in sparsity else ("--sparse-layers", "all")))
        where = ("--arch", scale.deep, "--stem", "cifar-pool", *scale.data)
        yield _train(scale, name, 3, where, scale.epochs, (*options, *drawn))
    for ratio in ratios:
        pruned = f"{name}-pruned-{round(100 * ratio)}"
        yield _prune(scale, pruned, name, ("--ratio", str(ratio)))
        yield _finetune(scale, pruned, 3, scale.epochs, ("--lr", "1e-3", *drawn))


def _small_networks(scale: Scale) -> Iterator[Piece]:
    """The stem at full resolution: highest accuracy at the reference's parameters, and the smallest network
    with the same accuracy.
    """
    options = ("--sparsity", "auto:0.9", "--ema", "0.999", "--label-smoothing", "0.1")
    where = ("--arch", scale.deep, "--stem", "cifar", *scale.data)
    yield _train(scale, "cifar-stem", 8, where, scale.long_epochs, options)
    for params in scale.small:
        pruned = f"cifar-stem-{params}"
        how = ("--params", params, "--criterion", "surgeon", "--residual", "couple")
        yield _prune(scale, pruned, "cifar-stem", how)
        tuned = ("--lr", "0.02", "--teacher", f"cifar-stem{CHECKPOINT}", "--ema", "0.999")
        yield _finetune(scale, pruned, 8, scale.long_epochs, tuned)


def _shallow(scale: Scale) -> Iterator[Piece]:
    """The recipe cifar10-resnet18."""
    where = ("--arch", scale.shallow, "--stem", "cifar", *scale.data)
    options = ("--schedule", "step", "--patience", "20", "--validation", "0.2")
    yield _train(scale, "resnet18", 8, where, scale.shallow_epochs, options)


def _gpu_checks(scale: Scale) -> Iterator[Piece]:
    """`gpu_check` of the first pair, one piece per backend, and the result of TensorRT's builder on
    this GPU.
    """
    trained = "lambda-1e-4-seed-0"
    final = f"{trained}-pruned-90-tuned"
    pair = ("--original", f"{trained}{CHECKPOINT}", "--pruned", f"{final}{CHECKPOINT}", *scale.data[:2])
    check = "slimdeploy.benchmarks.gpu_check"
    for part, minutes in PARTS.items():
        words = ("--part", part, *pair, *scale.timing)
        yield Piece(f"gpu-check-{part}", minutes, words, (trained, final), check)
    yield Piece("onnx", 0.5, ("export", f"{final}{CHECKPOINT}", "-o", "final.onnx"), (final,))
    yield Piece("engine", 2, ("export", "final.onnx", "--trt", "-o", "final.engine"), ("onnx",))


def _train(
    scale: Scale, name: str, minutes: float, where: tuple[str, ...], epochs: int, options: tuple[str, ...]
) -> Piece:
    how = ("--epochs", str(epochs), *options, *scale.training)
    return Piece(name, minutes, ("train", *where, *how, "-o", f"{name}{CHECKPOINT}"))


def _prune(scale: Scale, name: str, source: str, options: tuple[str, ...]) -> Piece:
    words = ("prune", f"{source}{CHECKPOINT}", *options, *scale.data, "-o", f"{name}{CHECKPOINT}")
    return Piece(name, 0.5, words, (source,))


def _finetune(scale: Scale, source: str, minutes: float, epochs: int, options: tuple[str, ...]) -> Piece:
    name = f"{source}-tuned"
    how = ("--epochs", str(epochs), *options, *scale.training)
    words = ("finetune", f"{source}{CHECKPOINT}", *how, "-o", f"{name}{CHECKPOINT}")
    return Piece(name, minutes, words, (source,))
