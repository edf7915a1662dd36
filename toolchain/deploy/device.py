"""Install a bundle on this device: verify, unpack, build, check, measure, switch over. And roll back."""

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
from slimdeploy.toolchain.deploy.check import Checked, check_model, fastest
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
from slimdeploy.toolchain.deploy.store import DISK_MARGIN, Store
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.machine.cpu import this_cpu
from slimdeploy.toolchain.machine.sysfs import DeviceFacts, read_facts
from slimdeploy.toolchain.models.model_info import versions
from slimdeploy.toolchain.runtime.session import Session, SessionOptions, open_session


@dataclass(frozen=True)
class Deployment(Checked):
    """The installed version and its check results: `deployment.json` of a version."""

    version: str
    bundle_sha256: str
    signer: str | None
    model: str
    """Path of the model file in the version's folder."""
    model_sha256: str
    candidates_ms: dict[str, float]
    """Median latency of every model timed here, by variant; the fastest one is used."""
    cpu: str
    batch: int
    """Maximum batch size of the engine."""
    notes: tuple[str, ...]
    device: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Restored:
    """The version in use after a rollback."""

    version: str
    golden: GoldenResult

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def install(
    path: Path, store: Store, options: DeployOptions, *, facts: DeviceFacts | None = None
) -> Deployment:
    """Install the bundle at `path` and make it the current version.

    If the current version is this bundle with the same options, it is checked again and kept; if the check
    fails, e.g. after an update of JetPack, it is replaced. The previous version is therefore always a
    different one.

    Raises SlimdeployError if the bundle can't be trusted or the device has too little space, CheckFailed if
    its results differ from the host's. In these cases, and after an interruption, the previous version stays
    the current one.
    """
    facts = facts or read_facts()
    allowed = Path(options.allowed_signers) if options.allowed_signers else None
    if allowed:
        signature.check_signers(allowed)
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
            engine, checked, timed = fastest(
                folder,
                bundle.manifest,
                choices,
                options,
                free_mb=facts.free_mb,
                trusted=signer is not None,
            )
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
    """Go back to the previous version, after checking it again."""
    store.current()  # before the lock, which would create the store
    with store.lock():
        names = store.active()
        if len(names) < 2:
            raise SlimdeployError(f"there is no version before {names[0]}: can't roll back")
        folder = store.versions / names[-2]
        check_signer(folder, store)
        manifest = bundles.read_folder(folder)
        engine = installed_engine(folder, manifest)
        golden = check_model(folder, manifest, engine, options).golden
        return Restored(store.drop_current(), golden)


def open_deployed(store: Store, options: SessionOptions) -> tuple[Session, str]:
    """Open the model of the current version after checking its hash; returns it with the name of the
    version.
    """
    folder = store.current()
    manifest = bundles.read_folder(folder)
    engine = installed_engine(folder, manifest)
    session = open_session(engine.path, engine.backend, options)
    session.info = session.info or manifest.info
    return session, folder.name


def _check_signature(bundle: Bundle, store: Store, given: Path | None) -> tuple[str | None, tuple[str, ...]]:
    """The signer of the bundle, and a remark about the signature."""
    allowed = given or (store.allowed_signers if store.allowed_signers.exists() else None)
    if allowed is None:
        said = (
            "the signature was not checked: this device has no allowed signers"
            if bundle.signature
            else "not signed"
        )
        return None, (said,)
    if bundle.signature is None:
        raise SlimdeployError(f"{bundle.path} is not signed, but {allowed} requires a signature")
    return signature.verify(bundle.content, bundle.signature, allowed), ()


def _check_again(folder: Path, options: DeployOptions) -> Deployment:
    """Check the version in `folder` again. Raises SlimdeployError if it is damaged, or its engine doesn't fit
    this device any more.
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
    """Check the space for the bundle, an engine of twice the model's size, and the model in memory with a
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
