"""Installs a bundle on this device: verify, unpack, build, check, measure, switch over. And back."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy import signature
from slimdeploy.toolchain.deploy.bundle import Bundle
from slimdeploy.toolchain.deploy.bundle_manifest import BundleManifest, Variant
from slimdeploy.toolchain.deploy.check import Accuracy, check_model, fastest
from slimdeploy.toolchain.deploy.engine import candidates
from slimdeploy.toolchain.deploy.golden import GoldenResult
from slimdeploy.toolchain.deploy.installed import (
    DOCUMENT,
    check_signer,
    current_if_same,
    installed_engine,
    read_document,
)
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.deploy.trial import try_model
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.machine.sysfs import DeviceFacts, read_facts
from slimdeploy.toolchain.models.model_info import versions
from slimdeploy.toolchain.runtime.onnx_file import read_onnx
from slimdeploy.toolchain.runtime.session import Session, SessionOptions, open_session
from slimdeploy.toolchain.runtime.single_image import Latency

DISK_MARGIN = 64 << 20
"""Bytes that stay free on the device."""


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
    accuracy: Accuracy
    latency_ms: Latency
    candidates_ms: dict[str, float]
    """Median of every model that was timed here, by its variant; the fastest one runs."""
    cpu: str
    batch: int
    """Images that the engine computes together at most."""
    notes: tuple[str, ...]
    device: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Restored:
    """The version that is in use again after a rollback."""

    version: str
    golden: GoldenResult

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def install(
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
    allowed = Path(options.allowed_signers) if options.allowed_signers else None
    sha256 = artifacts.sha256_file(path)
    bundle = bundles.read_bundle(path)
    with store.lock():
        signer, notes = _check_signature(bundle, store, allowed)
        if allowed:
            artifacts.write_bytes(store.allowed_signers, allowed.read_bytes())
        store.clean()
        choices = candidates(bundle.manifest, options)
        same = current_if_same(store, sha256, choices, batch=options.batch)
        if same is not None and read_document(same).get("signer") == signer:
            with contextlib.suppress(SlimdeployError):
                return _check_again(same, options)
        largest = max((c.variant for c in choices), key=lambda v: bundle.manifest.file(v.model).bytes)
        _check_resources(bundle.manifest, largest, store.root, facts)
        with store.new_folder() as folder:
            bundles.unpack(bundle, folder)
            for choice in choices:
                if signer is None and choice.backend == "onnxruntime":
                    model = folder / choice.variant.model
                    try_model(model, read_onnx(model), batch=options.batch)
            engine, checked, timed = fastest(folder, bundle.manifest, choices, options, free_mb=facts.free_mb)
            made = Deployment(
                version=store.next_version(bundle.manifest.name),
                bundle_sha256=sha256,
                signer=signer,
                model=str(engine.path.relative_to(folder)),
                model_sha256=artifacts.sha256_file(engine.path),
                batch=options.batch,
                cpu=str(this_cpu()),
                notes=(*notes, *engine.notes),
                device=facts.to_json(),
                versions=versions(),
                candidates_ms=timed,
                **vars(checked),
            )
            artifacts.write_json(folder / DOCUMENT, made.to_json())
            store.add(folder, made.version, instead_of=same.name if same else None)
    return made


def rollback(store: Store, options: DeployOptions) -> Restored:
    """Go back to the version before the current one, once it has proved itself again."""
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
        golden = check_model(folder, manifest, engine, options).golden
        return Restored(store.drop_current(), golden)


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
    checked = check_model(folder, manifest, engine, options)
    kept = {**read_document(folder), **vars(checked)}
    kept["notes"] = (*kept["notes"], "was deployed already: checked again")
    try:
        return Deployment(**kept)
    except TypeError:
        raise SlimdeployError(f"{folder} was deployed by another version of slimdeploy") from None


def _check_resources(manifest: BundleManifest, variant: Variant, root: Path, facts: DeviceFacts) -> None:
    """Room for the bundle, an engine as large as its model twice over, and the model in memory with its
    copy.
    """
    model = manifest.file(variant.model).bytes
    needed, free = manifest.content_bytes + 2 * model + DISK_MARGIN, shutil.disk_usage(root).free
    if free < needed:
        raise SlimdeployError(
            f"{root}: not enough disk space: {-(-needed >> 20)} MiB needed, {free >> 20} MiB free; "
            "free space or choose another `root`"
        )
    needed_mb = 64 + 4 * model / 2**20
    if facts.free_mb < needed_mb:
        raise SlimdeployError(
            f"{facts.free_mb:.0f} MiB of memory are free, {needed_mb:.0f} MiB are needed: end other programs"
        )
