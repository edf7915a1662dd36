"""Names and signatures of the package. Written by tests/type_stub.py."""

import torch
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path
from slimdeploy.calibrate.measure import Progress
from slimdeploy.calibrate.options import CalibrateOptions as CalibrateOptions
from slimdeploy.calibrate.options import CalibrationData
from slimdeploy.toolchain.data.dataset import DataOptions as DataOptions
from slimdeploy.toolchain.data.dataset import Dataset as Dataset
from slimdeploy.toolchain.data.dataset import Split as Split
from slimdeploy.toolchain.data.feed import Batch
from slimdeploy.toolchain.deploy.deploy import DeployResult as DeployResult
from slimdeploy.toolchain.deploy.options import DeployOptions as DeployOptions
from slimdeploy.toolchain.deploy.options import PackageOptions as PackageOptions
from slimdeploy.toolchain.deploy.options import SshOptions as SshOptions
from slimdeploy.toolchain.deploy.package import PackageResult as PackageResult
from slimdeploy.toolchain.errors import CheckFailed as CheckFailed
from slimdeploy.toolchain.errors import SlimdeployError as SlimdeployError
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.library import sparsity as sparsity
from slimdeploy.toolchain.library.bench import BenchResult as BenchResult
from slimdeploy.toolchain.library.export import ExportResult as ExportResult
from slimdeploy.toolchain.library.fine_tuning import Between
from slimdeploy.toolchain.library.prune_result import PruneResult as PruneResult
from slimdeploy.toolchain.library.quantize import Calibration as Calibration
from slimdeploy.toolchain.library.train import TrainResult as TrainResult
from slimdeploy.toolchain.measure.evaluate import EvaluateResult as EvaluateResult
from slimdeploy.toolchain.measure.options import BenchOptions as BenchOptions
from slimdeploy.toolchain.measure.options import EvaluateOptions as EvaluateOptions
from slimdeploy.toolchain.models.checkpoint import Checkpoint as Checkpoint
from slimdeploy.toolchain.preprocessing import Preprocessing as Preprocessing
from slimdeploy.toolchain.pruning.options import PruneOptions as PruneOptions
from slimdeploy.toolchain.training.options import TrainOptions as TrainOptions
from torch import nn
from typing import Any

__version__: str

def deploy(
    bundle: str | Path | None,
    *,
    root: str | Path | None = None,
    hosts: str | Sequence[str] = ...,
    progress: Callable[[str], None] = ...,
    precision: str | None = None,
    backend: str | None = None,
    batch: int = 8,
    threads: int | None = None,
    seconds: float = 1.0,
    allowed_signers: str | None = None,
    options: DeployOptions | None = None,
    ssh_config: str | None = None,
    remote_command: str | None = None,
    bootstrap: bool = False,
    wheels: str | None = None,
    ssh: SshOptions | None = None,
) -> DeployResult: ...
def rollback(
    *,
    root: str | Path | None = None,
    hosts: str | Sequence[str] = ...,
    threads: int | None = None,
    seconds: float = 1.0,
    progress: Callable[[str], None] = ...,
    ssh_config: str | None = None,
    remote_command: str | None = None,
    bootstrap: bool = False,
    wheels: str | None = None,
    ssh: SshOptions | None = None,
) -> DeployResult: ...
def package(
    models: Sequence[str | Path],
    *,
    output: str | Path,
    data: str | DataOptions | None = None,
    force: bool = False,
    noise: bool = False,
    golden: int = 16,
    evaluation: int = 200,
    ranges: str | None = None,
    signing_key: str | None = None,
    options: PackageOptions | None = None,
) -> PackageResult: ...
def bench(
    models: Sequence[str | Path],
    *,
    data: str | DataOptions | None = None,
    progress: Callable[[str], None] = ...,
    command: Sequence[str] = ...,
    seconds: float = 10.0,
    launches: int = 10,
    ci: float = 0.02,
    seed: int = 0,
    batches: tuple[int, ...] = ...,
    limit: int | None = None,
    threads: int | None = None,
    backends: tuple[str, ...] = ...,
    device: str = "auto",
    options: BenchOptions | None = None,
) -> BenchResult: ...
def evaluate(
    model: str | Path | Checkpoint | nn.Module,
    *,
    data: str | DataOptions | Dataset | Iterable[Batch] | None = None,
    size: int | None = None,
    limit: int | None = None,
    backend: str = "auto",
    accuracy_only: bool = False,
    device: str = "auto",
    threads: int | None = None,
    options: EvaluateOptions | None = None,
) -> EvaluateResult: ...
def export(
    network: Checkpoint | nn.Module,
    *,
    output: str | Path,
    data: Dataset | Iterable[Batch],
    size: int | None = None,
    force: bool = False,
    opset: int = 19,
    precision: str = "fp32",
    target: str = "tensorrt",
    parity_images: int = 512,
    max_abs_error: float | None = None,
    min_agreement: float | None = None,
    options: ExportOptions | None = None,
) -> ExportResult: ...
def load(
    path: str | Path,
) -> Checkpoint: ...
def load_data(
    data: str | DataOptions,
) -> Dataset: ...
def save(
    checkpoint: Checkpoint,
    *,
    path: str | Path,
    force: bool = False,
) -> str: ...
def from_module(
    module: nn.Module,
    *,
    size: int | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str | int] | None = None,
    name: str = "custom",
) -> Checkpoint: ...
def prune(
    network: Checkpoint | nn.Module,
    *,
    data: Dataset | Iterable[Batch] | None = None,
    test: Iterable[Batch] | None = None,
    size: int | None = None,
    device: str | torch.device | None = None,
    between: Between | None = None,
    provenance: dict[str, Any] | None = None,
    ratio: float | None = None,
    params: float | None = None,
    macs: float | None = None,
    latency_ms: float | None = None,
    latency_table: str | None = None,
    measure: bool = True,
    criterion: str = "gamma",
    residual: str = "keep",
    align: int | None = None,
    target: str = "cpu",
    min_channels: int = 3,
    allow_block_removal: bool = False,
    fold: bool = True,
    compensate: bool = True,
    statistics_images: int = 2048,
    recalibration_images: int = 5120,
    steps: int = 1,
    step_epochs: int = 1,
    step_lr: float = 0.01,
    seed: int = 0,
    options: PruneOptions | None = None,
) -> PruneResult: ...
def quantize(
    model: str | Path,
    *,
    data: Dataset | CalibrationData,
    output: str | Path,
    ranges: str | Path | None = None,
    trt8: str | Path | None = None,
    force: bool = False,
    progress: Progress = ...,
    method: str = "auto",
    target: str = "tensorrt",
    compute: str = "fp32",
    max_drop: float = 1.0,
    sensitivity: bool = False,
    sensitivity_images: int = 500,
    float_layers: tuple[str, ...] = ...,
    threads: int | None = None,
    timing_seconds: float = 1.0,
    options: CalibrateOptions | None = None,
) -> Calibration: ...
def finetune(
    network: Checkpoint | nn.Module,
    *,
    data: Dataset | Iterable[Batch],
    val: Iterable[Batch] | None = None,
    test: Iterable[Batch] | None = None,
    size: int | None = None,
    device: str | torch.device | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 0.001,
    schedule: str = "one-cycle",
    step_epochs: int = 30,
    momentum: float = 0.9,
    weight_decay: float = 0.0005,
    label_smoothing: float = 0.0,
    sparsity: float | str = 0.0,
    sparsity_step: str = "proximal",
    sparse_layers: str = "prunable",
    sparse_align: int = 8,
    shrink: bool = True,
    validation: float = 0.1,
    patience: int | None = None,
    ema: float = 0.0,
    recalibration_images: int = 0,
    teacher: str | None = None,
    distill: float = 0.5,
    temperature: float = 4.0,
    teacher_cache: str | None = None,
    augmentation: str = "cifar",
    crop_pad: int | None = None,
    resized_crop: float | None = None,
    flip: bool = True,
    flip_mode: str = "random",
    color_jitter: float = 0.0,
    cutout: int = 0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    limit: int | None = None,
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    options: TrainOptions | None = None,
) -> TrainResult: ...
def train(
    network: Checkpoint | nn.Module | str,
    *,
    data: Dataset | Iterable[Batch],
    val: Iterable[Batch] | None = None,
    test: Iterable[Batch] | None = None,
    size: int | None = None,
    device: str | torch.device | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    lr: float = 0.1,
    schedule: str = "one-cycle",
    step_epochs: int = 30,
    momentum: float = 0.9,
    weight_decay: float = 0.0005,
    label_smoothing: float = 0.0,
    sparsity: float | str = 0.0,
    sparsity_step: str = "proximal",
    sparse_layers: str = "prunable",
    sparse_align: int = 8,
    shrink: bool = True,
    validation: float = 0.1,
    patience: int | None = None,
    ema: float = 0.0,
    recalibration_images: int = 0,
    teacher: str | None = None,
    distill: float = 0.5,
    temperature: float = 4.0,
    teacher_cache: str | None = None,
    augmentation: str = "cifar",
    crop_pad: int | None = None,
    resized_crop: float | None = None,
    flip: bool = True,
    flip_mode: str = "random",
    color_jitter: float = 0.0,
    cutout: int = 0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    limit: int | None = None,
    precision: str = "auto",
    compile: bool = False,
    seed: int = 0,
    options: TrainOptions | None = None,
) -> TrainResult: ...
