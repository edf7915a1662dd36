"""Installs a bundle on this device: verify, unpack, build, check, measure, switch over. And back."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy import signature
from slimdeploy.toolchain.deploy.bundle import Bundle
from slimdeploy.toolchain.deploy.engine import Engine, EngineOptions, choose, prepare
from slimdeploy.toolchain.deploy.golden import MAX_ACCURACY_DROP, GoldenResult, compare, compute_logits
from slimdeploy.toolchain.deploy.installed import (
    DOCUMENT,
    check_signer,
    current_if_same,
    installed_engine,
    read_document,
)
from slimdeploy.toolchain.deploy.manifest import Manifest, Variant
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.deploy.sysfs import DeviceFacts, read_facts
from slimdeploy.toolchain.deploy.trial import try_model
from slimdeploy.toolchain.errors import CheckFailed, SlimdeployError
from slimdeploy.toolchain.model_info import versions
from slimdeploy.toolchain.runtime.onnx_file import read_onnx
from slimdeploy.toolchain.runtime.session import Session, SessionOptions, open_session

DISK_MARGIN = 64 << 20
"""Bytes that stay free on the device."""


@dataclass(frozen=True)
class DeployOptions:
    """How to install. `allowed_signers` is kept on the device and holds from then on."""

    engine: EngineOptions = field(default_factory=EngineOptions)
    threads: int | None = None
    allowed_signers: Path | None = None
    measure_seconds: float = 1.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a single image, the copies to and from the device included."""

    p50: float
    p99: float
    runs: int


@dataclass(frozen=True)
class Deployment:
    """What was installed and how it did: `deployment.json` of a version."""

    version: str
    bundle_sha256: str
    signer: str | None
    model: str
    """Path of the file that runs, inside the version's folder."""
    model_sha256: str
    variant: str
    precision: str
    runtime: str
    """The backend that opens it; `backend` is what the open session calls itself."""
    backend: str
    golden: GoldenResult
    accuracy: dict[str, Any]
    latency_ms: Latency
    batch: int
    """Images that the engine computes together at most."""
    notes: tuple[str, ...]
    device: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def deploy(
    path: Path, store: Store, options: DeployOptions, *, facts: DeviceFacts | None = None
) -> Deployment:
    """Install the bundle at `path` and make it the current version.

    Where the current version is this bundle, run in the same way, it is checked again and stays; where that
    fails, as after an update of JetPack, it is replaced. So the version before is always another one.

    Raises SlimdeployError where the bundle can't be trusted or the device can't hold it, CheckFailed where it
    doesn't compute here what it computed on the host. Then, and wherever this is interrupted, the version
    before stays the current one.
    """
    facts = facts or read_facts()
    sha256 = artifacts.sha256_file(path)
    bundle = bundles.read_bundle(path)
    with store.lock():
        signer, notes = _check_signature(bundle, store, options.allowed_signers)
        if options.allowed_signers:
            artifacts.write_bytes(store.allowed_signers, options.allowed_signers.read_bytes())
        store.clean()
        choice = choose(bundle.manifest, options.engine)
        same = current_if_same(store, sha256, choice, batch=options.engine.batch)
        if same is not None and read_document(same).get("signer") == signer:
            with contextlib.suppress(SlimdeployError):
                return _check_again(same, options)
        _check_resources(bundle.manifest, choice.variant, store.root, facts)
        with store.new_folder() as folder:
            bundles.unpack(bundle, folder)
            if signer is None and choice.backend == "onnxruntime":
                model = folder / choice.variant.model
                try_model(model, read_onnx(model), batch=options.engine.batch)
            engine = prepare(folder, choice, options.engine, free_mb=facts.free_mb)
            checked = _check(folder, bundle.manifest, engine, options)
            made = Deployment(
                version=store.next_version(bundle.manifest.name),
                bundle_sha256=sha256,
                signer=signer,
                model=str(engine.path.relative_to(folder)),
                model_sha256=artifacts.sha256_file(engine.path),
                batch=options.engine.batch,
                notes=(*notes, *engine.notes),
                device=facts.to_json(),
                versions=versions(),
                **checked,
            )
            artifacts.write_json(folder / DOCUMENT, made.to_json())
            store.add(folder, made.version, instead_of=same.name if same else None)
    return made


def rollback(store: Store, options: DeployOptions) -> tuple[str, GoldenResult]:
    """Go back to the version before the current one, once it has proved itself again; returns its name."""
    with store.lock():
        names = store.active()
        if len(names) < 2:
            raise SlimdeployError(
                f"there is no version before {names[0] if names else 'the first'} to go back to"
            )
        folder = store.versions / names[-2]
        check_signer(folder, store)
        manifest = bundles.read_folder(folder)
        engine = installed_engine(folder, manifest)
        golden = _check(folder, manifest, engine, options)["golden"]
        return store.drop_current(), golden


def open_deployed(store: Store, options: SessionOptions) -> tuple[Session, str]:
    """Open the current version's model, its hash checked; returns it with the version's name."""
    folder = store.current()
    manifest = bundles.read_folder(folder)
    engine = installed_engine(folder, manifest)
    session = open_session(engine.path, engine.backend, options)
    session.info = session.info or manifest.info
    return session, folder.name


def _check_signature(bundle: Bundle, store: Store, given: Path | None) -> tuple[str | None, tuple[str, ...]]:
    """Who signed the bundle, and what to say of it."""
    allowed = given or (store.allowed_signers if store.allowed_signers.exists() else None)
    if allowed is None:
        said = (
            "signed, but this device has no allowed signers: not checked"
            if bundle.signature
            else "not signed"
        )
        return None, (said,)
    if bundle.signature is None:
        raise SlimdeployError(f"{bundle.path} is not signed, and {allowed} asks for a signature")
    return signature.verify(bundle.content, bundle.signature, allowed), ()


def _check_again(folder: Path, options: DeployOptions) -> Deployment:
    """The version in `folder` as it does now. Raises SlimdeployError where it is damaged or its engine
    doesn't fit this device any more.
    """
    manifest = bundles.read_folder(folder)
    engine = installed_engine(folder, manifest)
    checked = _check(folder, manifest, engine, options)
    kept = {**read_document(folder), **checked}
    kept["notes"] = (*kept["notes"], "was deployed already: checked again")
    try:
        return Deployment(**kept)
    except TypeError:
        raise SlimdeployError(f"{folder} was deployed by another version of slimdeploy") from None


def _check_resources(manifest: Manifest, variant: Variant, root: Path, facts: DeviceFacts) -> None:
    """Room for the bundle, an engine as large as its model twice over, and the model in memory with its
    copy.
    """
    model = manifest.file(variant.model).bytes
    needed, free = manifest.content_bytes + 2 * model + DISK_MARGIN, shutil.disk_usage(root).free
    if free < needed:
        raise SlimdeployError(
            f"{root}: not enough disk space: {-(-needed >> 20)} MiB needed, {free >> 20} MiB free; "
            "free space or choose another --root"
        )
    needed_mb = 64 + 4 * model / 2**20
    if facts.free_mb < needed_mb:
        raise SlimdeployError(
            f"{facts.free_mb:.0f} MiB of memory are free, {needed_mb:.0f} MiB are needed: end other programs"
        )


def _check(folder: Path, manifest: Manifest, engine: Engine, options: DeployOptions) -> dict[str, Any]:
    """Golden run, accuracy and latency of a model; raises CheckFailed where it isn't what it was on the
    host.
    """
    variant, prep = engine.variant, manifest.info.preprocessing
    with open_session(engine.path, engine.backend, SessionOptions(threads=options.threads)) as session:
        if session.input_shape != (3, prep.size, prep.size):
            raise SlimdeployError(
                f"{engine.path.name} takes {session.input_shape}, its manifest says {prep.size}"
            )
        batch = options.engine.batch
        logits = compute_logits(session, bundles.golden_images(folder, manifest), prep, batch=batch)
        golden = compare(logits, bundles.golden_logits(folder, manifest, variant), variant.precision)
        if not golden.passed:
            raise CheckFailed(
                f"{variant.id} on {session.backend}: golden outputs differ by {golden.max_error:.3g}, "
                f"{golden.tolerance:g} is allowed; the version before stays in use"
            )
        images, labels = bundles.evaluation_set(folder, manifest)
        accuracy: dict[str, Any] = {"images": len(labels), "host": variant.accuracy, "device": None}
        if len(labels):
            right = compute_logits(session, images, prep, batch=batch).argmax(1) == labels
            accuracy["device"] = round(float(right.mean()), 6)
            if variant.accuracy is not None and accuracy["device"] < variant.accuracy - MAX_ACCURACY_DROP:
                raise CheckFailed(
                    f"{variant.id} on {session.backend}: {accuracy['device']:.1%} of the images right, "
                    f"{variant.accuracy:.1%} on the host; the version before stays in use"
                )
        latency = _measure(session, options.measure_seconds)
        return {
            "variant": variant.id, "precision": variant.precision, "runtime": engine.backend,
            "backend": session.backend, "golden": golden, "accuracy": accuracy, "latency_ms": latency,
        }  # fmt: skip


def _measure(session: Session, seconds: float) -> Latency:
    """Time single images for about `seconds`, after a warm-up of a quarter of that."""
    image = np.zeros((1, *session.input_shape), np.float32)
    times: list[float] = []
    start = time.perf_counter()
    while not times or time.perf_counter() - start < 1.25 * seconds:
        before = time.perf_counter()
        session.run(image)
        now = time.perf_counter()
        if now - start > 0.25 * seconds:
            times.append(1e3 * (now - before))
    p50, p99 = np.percentile(times, [50, 99])
    return Latency(round(float(p50), 4), round(float(p99), 4), len(times))
