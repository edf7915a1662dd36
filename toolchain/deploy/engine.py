"""From the models in a bundle to what this device runs: a TensorRT engine, or the ONNX file itself."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.toolchain.deploy.bundle_manifest import BundleManifest, Variant
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.errors import SlimdeployError, missing_library

# Backend, best first -> the models to prefer on it, best first: precision and whom it was quantised for. On
# TensorRT the first one is taken, because an engine takes minutes to build; on a CPU all of them are timed.
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
"""More scratch memory than any ResNet's layer takes; half of the free memory where that is less."""


@dataclass(frozen=True)
class Choice:
    """A model of the bundle and what runs it; `notes` say what a person should know of it."""

    variant: Variant
    backend: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """A model ready to be opened by `backend`."""

    path: Path
    variant: Variant
    backend: str
    notes: tuple[str, ...]


def candidates(manifest: BundleManifest, options: DeployOptions) -> tuple[Choice, ...]:
    """Which models to try here, and the backend: one for TensorRT, all that fit for onnxruntime. Raises
    SlimdeployError where none fits.
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
    """Make what `choice` says ready to run, inside the unpacked bundle's `folder`: build the engine for
    TensorRT, for at most `batch` images at once.

    `free_mb` is the memory that the build may share. Raises SlimdeployError where the engine can't be built.
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
    """The backend, and what to say of it."""
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
    """What keeps an engine from being built and run here; None where nothing does."""
    from slimdeploy.toolchain.runtime.device import open_device

    try:
        import tensorrt  # noqa: F401

        open_device().close()
    except ModuleNotFoundError as error:
        return str(missing_library(error) or error)
    except (SlimdeployError, ImportError, OSError) as error:
        return " ".join(str(error).split())
    return None
