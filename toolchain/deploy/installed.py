"""An installed version: its `deployment.json`, and its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.bundle_manifest import BundleManifest
from slimdeploy.toolchain.deploy.engine import Choice, Engine
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import SlimdeployError

DOCUMENT = "deployment.json"


@dataclass(frozen=True)
class Deployed:
    """The version in use on this device, according to its files."""

    version: str
    variant: str
    runtime: str
    manifest: BundleManifest


def deployed(store: Store) -> Deployed | None:
    """What is deployed, without hashing it; None if nothing is.

    Raises SlimdeployError if its description is damaged.
    """
    if not store.active():
        return None
    document = read_document(store.current())
    version, variant, runtime = (str(document.get(key)) for key in ("version", "variant", "runtime"))
    return Deployed(version, variant, runtime, store.manifest())


def read_document(folder: Path) -> dict[str, Any]:
    """The `deployment.json` of an installed version."""
    document = artifacts.read_json(folder / DOCUMENT, "deployment")
    if not isinstance(document, dict):
        raise SlimdeployError(f"{folder / DOCUMENT} is damaged: deploy the bundle again")
    return document


def installed_engine(folder: Path, manifest: BundleManifest) -> Engine:
    """The engine in `deployment.json`, after checking its hash."""
    document = read_document(folder)
    try:
        model = folder / document["model"]
        variant = next(v for v in manifest.variants if v.id == document["variant"])
        engine, sha256 = Engine(model, variant, document["runtime"], ()), document["model_sha256"]
    except (KeyError, TypeError, StopIteration):
        raise SlimdeployError(f"{folder / DOCUMENT} is damaged: deploy the bundle again") from None
    if artifacts.sha256_file(model) != sha256:
        raise SlimdeployError(f"{model} has changed since it was deployed: deploy its bundle again")
    return engine


def check_signer(folder: Path, store: Store) -> None:
    """Refuse an installed version that this device would no longer accept."""
    if store.allowed_signers.exists() and read_document(folder).get("signer") is None:
        raise SlimdeployError(
            f"{folder.name} was installed without checking a signature, but {store.allowed_signers} requires "
            "one: deploy its signed bundle"
        )


def current_if_same(store: Store, sha256: str, choices: Sequence[Choice], *, batch: int) -> Path | None:
    """The folder of the current version if it is one of `choices` of this bundle; else None."""
    if not store.active():
        return None
    folder = store.current()
    wanted = {"bundle_sha256": sha256, "batch": batch}
    try:
        document = read_document(folder)
    except SlimdeployError:
        return None
    same = all(document.get(key) == value for key, value in wanted.items())
    runs = (document.get("variant"), document.get("runtime"))
    return folder if same and runs in {(c.variant.id, c.backend) for c in choices} else None
