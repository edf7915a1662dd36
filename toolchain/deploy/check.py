"""Check that a model gives the host's results on this device, time it, and choose the fastest model of a
bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy.bundle_manifest import BundleManifest
from slimdeploy.toolchain.deploy.engine import Choice, Engine, prepare
from slimdeploy.toolchain.deploy.golden import MAX_ACCURACY_DROP, GoldenResult, compare, compute_logits
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.deploy.trial import try_model
from slimdeploy.toolchain.errors import CheckFailed, SlimdeployError
from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.runtime.onnx_file import read_onnx
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session
from slimdeploy.toolchain.runtime.single_image import Latency, time_single_images


@dataclass(frozen=True)
class Accuracy:
    """Accuracy on the bundle's evaluation images, 0…1; None if unknown."""

    images: int
    host: float | None
    device: float | None


@dataclass(frozen=True)
class Checked:
    """A model whose results on this device match the host's."""

    variant: str
    precision: str
    runtime: str
    """Name of its backend; `backend` is the name of the open session."""
    backend: str
    golden: GoldenResult
    accuracy: Accuracy
    latency_ms: Latency


def fastest(
    folder: Path,
    manifest: BundleManifest,
    choices: Sequence[Choice],
    options: DeployOptions,
    *,
    free_mb: float,
    trusted: bool,
) -> tuple[Engine, Checked, dict[str, float]]:
    """Check and time each choice on this device; returns the fastest of those that pass, its measurements,
    and the median milliseconds of each by variant.

    A model that can't be opened or fails its check is named in the notes; one that is not `trusted` is tried
    first in a process of its own. Raises the first error if none passes.
    """
    passed: list[tuple[Engine, Checked]] = []
    failures: list[SlimdeployError] = []
    for choice in choices:
        try:
            if not trusted and choice.backend == "onnxruntime":
                model = folder / choice.variant.model
                try_model(model, read_onnx(model), batch=options.batch)
            engine = prepare(folder, choice, batch=options.batch, free_mb=free_mb)
            passed.append((engine, check_model(folder, manifest, engine, options)))
        except SlimdeployError as error:
            failures.append(error)
    if not passed:
        raise failures[0]
    engine, checked = min(passed, key=lambda entry: entry[1].latency_ms.p50)
    timed = {engine.variant.id: found.latency_ms.p50 for engine, found in passed}
    notes = (*engine.notes, *(f"not used: {error}" for error in failures))
    return replace(engine, notes=notes), checked, timed


def check_model(folder: Path, manifest: BundleManifest, engine: Engine, options: DeployOptions) -> Checked:
    """Golden run, accuracy and latency of a model; raises CheckFailed if its results differ from the
    host's.
    """
    variant, prep = engine.variant, manifest.info.preprocessing
    with open_session(engine.path, engine.backend, SessionOptions(threads=options.threads)) as session:
        if session.input_shape != prep.image_shape:
            raise SlimdeployError(
                f"{engine.path.name} expects {session.input_shape}, but the manifest says {prep.image_shape}"
            )
        batch = options.batch
        logits = compute_logits(session, bundles.golden_images(folder, manifest), prep, batch=batch)
        golden = compare(logits, bundles.golden_logits(folder, manifest, variant), variant.precision)
        if not golden.passed:
            raise CheckFailed(
                f"{variant.id} on {session.backend} ({this_cpu()}): golden outputs differ by "
                f"{golden.max_error:.3g}, {golden.tolerance:g} is allowed; the previous version stays in use"
            )
        images, labels = bundles.evaluation_set(folder, manifest)
        accuracy = Accuracy(len(labels), host=variant.accuracy, device=None)
        if len(labels):
            right = compute_logits(session, images, prep, batch=batch).argmax(1) == labels
            here = round(float(right.mean()), 6)
            accuracy = replace(accuracy, device=here)
            if variant.accuracy is not None and here < variant.accuracy - MAX_ACCURACY_DROP:
                raise CheckFailed(
                    f"{variant.id} on {session.backend}: {here:.1%} of the images correct, "
                    f"{variant.accuracy:.1%} on the host; the previous version stays in use"
                )
        return Checked(
            variant=variant.id,
            precision=variant.precision,
            runtime=engine.backend,
            backend=session.backend,
            golden=golden,
            accuracy=accuracy,
            latency_ms=time_single_images(session, options.seconds),
        )
