"""What is left on a device after something went wrong."""

from __future__ import annotations

from slimdeploy.toolchain.deploy import bundle as bundles
from slimdeploy.toolchain.deploy.installed import installed_engine
from slimdeploy.toolchain.deploy.options import DeployOptions
from slimdeploy.toolchain.deploy.store import Store

OPTIONS = DeployOptions(threads=1, seconds=0.01)
CHANGES = {
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "os.link",
    "os.symlink",
}
"""Audit events of changes to the file system."""


def whole(store: Store) -> bool:
    """Whether the current version is there with every byte it should have."""
    folder = store.current()
    manifest = bundles.read_folder(folder)
    return installed_engine(folder, manifest).path.is_file()


def leftovers(store: Store) -> set[str]:
    return {entry.name for entry in store.versions.iterdir()} - set(store.active())
