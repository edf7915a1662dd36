"""From the models in a bundle to the one that this device runs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.toolchain.deploy.manifest import Manifest, Variant
from slimdeploy.toolchain.deploy.sysfs import DeviceFacts
from slimdeploy.toolchain.errors import SlimdeployError

# Backend -> the models to prefer on it, best first: precision and whom it was quantised for.
# On a CPU, INT8 in TensorRT's form is no faster than FP32, and FP16 is computed as FP32.
PREFERENCES: dict[str, tuple[tuple[str, str], ...]] = {
    "onnxruntime": (
        ("int8", "cpu"), ("int8", "any"), ("mixed", "cpu"), ("mixed", "any"), ("fp32", "any"),
        ("fp16", "any"), ("int8", "tensorrt"), ("mixed", "tensorrt"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """What to run. `precision` and `backend` None take the best that bundle and device have."""

    precision: str | None = None
    backend: str | None = None
    batch: int = 8
    """Images that are computed together at most."""


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


def choose(manifest: Manifest, options: EngineOptions) -> Choice:
    """Choose model and backend. Raises SlimdeployError where the bundle or the device hasn't what is asked
    for.
    """
    backend, notes = _choose_backend(options.backend)
    if options.precision not in (None, *(v.precision for v in manifest.variants)):
        has = ", ".join(v.id for v in manifest.variants)
        raise SlimdeployError(f"the bundle has no {options.precision} model; it has {has}")
    variants = {(v.precision, v.target): v for v in manifest.variants}
    for wanted in PREFERENCES[backend]:
        if wanted in variants and options.precision in (None, wanted[0]):
            return Choice(variants[wanted], backend, notes)
    raise SlimdeployError(
        f"none of the bundle's models runs on {backend}: {', '.join(v.id for v in manifest.variants)}"
    )


def prepare(
    folder: Path, choice: Choice, options: EngineOptions, facts: DeviceFacts, *, cache: Path
) -> Engine:
    """Make what `choice` says ready to run, inside the unpacked bundle's `folder`."""
    return Engine(folder / choice.variant.model, choice.variant, choice.backend, choice.notes)


def _choose_backend(asked: str | None) -> tuple[str, tuple[str, ...]]:
    for backend in PREFERENCES if asked is None else (asked,):
        if backend not in PREFERENCES:
            raise SlimdeployError(f"--backend {backend}: {' or '.join(PREFERENCES)} can be deployed")
        if importlib.util.find_spec(backend):
            return backend, ()
    raise SlimdeployError("no runtime is installed here: pip install 'slimdeploy[cpu]'")
