"""From the models in a bundle to what this device runs: a TensorRT engine, or an ONNX file."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.toolchain.deploy.bundle_manifest import BundleManifest, Variant
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.errors import SlimdeployError, missing_library

# Backend, best first -> its preferred models, best first: precision and quantisation target. For TensorRT the
# first one is used, because an engine takes minutes to build; on a CPU all of them are timed.
PREFERENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "tensorrt": (
        ("int8", "tensorrt"),
        ("mixed", "tensorrt"),
        ("int8", "any"),
        ("mixed", "any"),
        ("fp16", "any"),
        ("fp32", "any"),
    ),
    "onnxruntime": (
        ("int8", "cpu"),
        ("mixed", "cpu"),
        ("int8", "any"),
        ("mixed", "any"),
        ("fp32", "any"),
        ("fp16", "any"),
        ("int8", "tensorrt"),
        ("mixed", "tensorrt"),
    ),
}

WORKSPACE_MB = 1024
"""Workspace limit, more than any layer of a ResNet needs; at most half of the free memory."""


@dataclass(frozen=True)
class Choice:
    """A model of the bundle and its backend; `notes` are remarks for the user."""

    variant: Variant
    backend: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """A model that `backend` can open."""

    path: Path
    variant: Variant
    backend: str
    notes: tuple[str, ...]


def candidates(manifest: BundleManifest, options: DeployOptions) -> tuple[Choice, ...]:
    """The models to try here, and the backend: one model for TensorRT, all suitable ones for onnxruntime.
    Raises SlimdeployError if none is suitable.
    """
    if options.precision not in (None, *(v.precision for v in manifest.variants)):
        has = ", ".join(v.id for v in manifest.variants)
        raise SlimdeployError(f"the bundle has no {options.precision} model; it has {has}")
    backend, notes = _choose_backend(options.backend)
    variants = {(v.precision, v.target): v for v in manifest.variants}
    fitting = tuple(
        Choice(variants[wanted], backend, notes)
        for wanted in PREFERENCES[backend]
        if wanted in variants and options.precision in (None, wanted[0])
    )
    if fitting:
        return fitting[:1] if backend == "tensorrt" else fitting
    has = ", ".join(v.id for v in manifest.variants)
    raise SlimdeployError(f"none of the bundle's models runs on {backend}; it has {has}")


def prepare(folder: Path, choice: Choice, *, batch: int, free_mb: float) -> Engine:
    """Prepare the model of `choice` in the unpacked bundle's `folder`: for TensorRT build the engine, with a
    maximum batch size of `batch`.

    `free_mb` is the memory available for the build. Raises SlimdeployError if the engine can't be built.
    """
    model = folder / choice.variant.model
    if choice.backend != "tensorrt":
        return Engine(model, choice.variant, choice.backend, choice.notes)
    from slimdeploy.toolchain.export import engine_options
    from slimdeploy.toolchain.stages import engine as engine_stage

    build = engine_options.EngineOptions(
        batch=(1, batch, batch), workspace_mb=max(16, min(WORKSPACE_MB, int(free_mb / 2)))
    )
    built = engine_stage.build_here(model, folder / f"{choice.variant.id}.engine", build)
    notes = choice.notes if built.audit.failed is None else (*choice.notes, built.audit.failed)
    return Engine(built.path, choice.variant, choice.backend, notes)


def _choose_backend(asked: str | None) -> tuple[str, tuple[str, ...]]:
    """The backend, and remarks about it."""
    if asked != "onnxruntime":
        reason = _why_no_tensorrt()
        if reason is None:
            return "tensorrt", ()
        if asked == "tensorrt":
            raise SlimdeployError(f"`backend` tensorrt: {reason}")
    if not importlib.util.find_spec("onnxruntime"):
        raise SlimdeployError("no runtime is installed here: pip install 'slimdeploy[cpu]'")
    return "onnxruntime", () if asked else (f"on onnxruntime's CPU provider, not on TensorRT: {reason}",)


def _why_no_tensorrt() -> str | None:
    """Why no engine can be built and run here; None if it can."""
    from slimdeploy.toolchain.runtime.device import open_device

    try:
        import tensorrt  # noqa: F401

        open_device().close()
    except ModuleNotFoundError as error:
        return str(missing_library(error) or error)
    except (SlimdeployError, ImportError, OSError) as error:
        return " ".join(str(error).split())
    return None
