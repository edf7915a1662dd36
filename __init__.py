"""slimdeploy: train a sparse network, prune it, and put a measured engine on the edge.

The names below are imported when they are first used: `import slimdeploy` itself needs no torch.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Before onnxruntime is loaded. It would send events to its maker, from threads of the process that is timed,
# and write an identifier to the disk of the device.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from slimdeploy.calibrate.options import CalibrateOptions as CalibrateOptions
    from slimdeploy.toolchain.data.dataset import DataOptions as DataOptions
    from slimdeploy.toolchain.data.dataset import Dataset as Dataset
    from slimdeploy.toolchain.data.dataset import Split as Split
    from slimdeploy.toolchain.deploy.deploy import DeployResult as DeployResult
    from slimdeploy.toolchain.deploy.deploy import deploy as deploy
    from slimdeploy.toolchain.deploy.deploy import rollback as rollback
    from slimdeploy.toolchain.deploy.options import DeployOptions as DeployOptions
    from slimdeploy.toolchain.deploy.options import PackageOptions as PackageOptions
    from slimdeploy.toolchain.deploy.options import SshOptions as SshOptions
    from slimdeploy.toolchain.deploy.package import PackageResult as PackageResult
    from slimdeploy.toolchain.deploy.package import package as package
    from slimdeploy.toolchain.errors import CheckFailed as CheckFailed
    from slimdeploy.toolchain.errors import SlimdeployError as SlimdeployError
    from slimdeploy.toolchain.library import sparsity as sparsity
    from slimdeploy.toolchain.library.bench import BenchResult as BenchResult
    from slimdeploy.toolchain.library.bench import bench as bench
    from slimdeploy.toolchain.library.evaluate import evaluate as evaluate
    from slimdeploy.toolchain.library.export import ExportResult as ExportResult
    from slimdeploy.toolchain.library.export import export as export
    from slimdeploy.toolchain.library.files import load as load
    from slimdeploy.toolchain.library.files import load_data as load_data
    from slimdeploy.toolchain.library.files import save as save
    from slimdeploy.toolchain.library.from_module import from_module as from_module
    from slimdeploy.toolchain.library.prune import prune as prune
    from slimdeploy.toolchain.library.prune_result import PruneResult as PruneResult
    from slimdeploy.toolchain.library.quantize import Calibration as Calibration
    from slimdeploy.toolchain.library.quantize import quantize as quantize
    from slimdeploy.toolchain.library.train import TrainResult as TrainResult
    from slimdeploy.toolchain.library.train import finetune as finetune
    from slimdeploy.toolchain.library.train import train as train
    from slimdeploy.toolchain.measure.evaluate import EvaluateResult as EvaluateResult
    from slimdeploy.toolchain.measure.options import BenchOptions as BenchOptions
    from slimdeploy.toolchain.measure.options import EvaluateOptions as EvaluateOptions
    from slimdeploy.toolchain.models.checkpoint import Checkpoint as Checkpoint
    from slimdeploy.toolchain.preprocessing import Preprocessing as Preprocessing
    from slimdeploy.toolchain.pruning.options import PruneOptions as PruneOptions
    from slimdeploy.toolchain.training.options import TrainOptions as TrainOptions

_T = "slimdeploy.toolchain."
_MODULES = {
    "slimdeploy.calibrate.options": ("CalibrateOptions",),
    _T + "data.dataset": ("DataOptions", "Dataset", "Split"),
    _T + "deploy.deploy": ("DeployResult", "deploy", "rollback"),
    _T + "deploy.options": ("DeployOptions", "PackageOptions", "SshOptions"),
    _T + "deploy.package": ("PackageResult", "package"),
    _T + "errors": ("CheckFailed", "SlimdeployError"),
    _T + "library": ("sparsity",),
    _T + "library.quantize": ("Calibration", "quantize"),
    _T + "library.bench": ("BenchResult", "bench"),
    _T + "library.evaluate": ("evaluate",),
    _T + "library.export": ("ExportResult", "export"),
    _T + "library.files": ("load", "load_data", "save"),
    _T + "library.from_module": ("from_module",),
    _T + "library.prune": ("prune",),
    _T + "library.prune_result": ("PruneResult",),
    _T + "library.train": ("TrainResult", "finetune", "train"),
    _T + "measure.evaluate": ("EvaluateResult",),
    _T + "measure.options": ("BenchOptions", "EvaluateOptions"),
    _T + "models.checkpoint": ("Checkpoint",),
    _T + "preprocessing": ("Preprocessing",),
    _T + "pruning.options": ("PruneOptions",),
    _T + "training.options": ("TrainOptions",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'slimdeploy' has no attribute {name!r}")
    module = importlib.import_module(_WHERE[name])
    return (
        getattr(module, name) if hasattr(module, name) else importlib.import_module(f"{_WHERE[name]}.{name}")
    )


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
