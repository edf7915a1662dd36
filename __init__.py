"""slimdeploy: train a sparse network, prune it, and put a measured engine on the edge.

The names below are imported when they are first used: `import slimdeploy` itself needs no torch. Type
checkers read __init__.pyi.
"""

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# Before onnxruntime is loaded. It would send events to its maker, from threads of the process that is timed,
# and write an identifier to the disk of the device.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

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
