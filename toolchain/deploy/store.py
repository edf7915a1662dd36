"""The installed versions of a model on a device, and the one in use.

    ROOT/active.json         the versions in use, oldest first; the last is the current one
    ROOT/versions/0007-name  one unpacked bundle with its engine and `deployment.json`
    ROOT/versions/.new-…     a version being installed
    ROOT/.lock               locked during an installation
    ROOT/allowed_signers     if it exists, only signed bundles are installed

`active.json` is replaced atomically. Versions named in it are not changed or removed before, so the version
in use is complete after any interruption.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.bundle_manifest import BundleManifest
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import exclusive

KEPT = 3
"""Versions kept on the device, the current one included."""
DISK_MARGIN = 64 << 20
"""Bytes that must remain free on the device's disk."""

_VERSION = re.compile(r"(\d{4,9})-[A-Za-z0-9._-]{1,64}")
_NEW = ".new-"


@dataclass(frozen=True)
class Store:
    """The folder of all versions. It is created by the first installation."""

    root: Path

    @property
    def versions(self) -> Path:
        return self.root / "versions"

    @property
    def allowed_signers(self) -> Path:
        return self.root / "allowed_signers"

    def active(self) -> list[str]:
        """Names of the versions in use, oldest first; empty if nothing was deployed yet."""
        return self._read()[1]

    def current(self) -> Path:
        """Folder of the current version; raises SlimdeployError if there is none."""
        names = self.active()
        if not names:
            raise SlimdeployError(f"nothing is deployed in {self.root}: slimdeploy deploy BUNDLE")
        return self.versions / names[-1]

    def manifest(self) -> BundleManifest:
        """The manifest of the current version; its files are not hashed.

        Raises SlimdeployError if there is none, or it is damaged.
        """
        return BundleManifest.of_folder(self.current())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the store; raises SlimdeployError at once if another process has locked it."""
        try:
            self.versions.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SlimdeployError(f"cannot write {self.versions}: {error.strerror}") from error
        with exclusive(self.root, f"the store {self.root}"):
            yield

    def clean(self) -> None:
        """Remove leftovers of killed runs, and versions that aren't in use. The store must be locked."""
        used = set(self.active())
        for entry in self.versions.iterdir():
            if entry.name.startswith(_NEW) or (_VERSION.fullmatch(entry.name) and entry.name not in used):
                shutil.rmtree(entry, ignore_errors=True)
        for leftover in self.root.glob(".*.tmp"):  # left by a killed atomic write
            leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def new_folder(self) -> Iterator[Path]:
        """A folder for a version being installed; its remaining content is removed at the end."""
        try:
            holder = Path(tempfile.mkdtemp(dir=self.versions, prefix=_NEW))
        except OSError as error:
            raise SlimdeployError(f"cannot write in {self.versions}: {error.strerror}") from error
        try:
            yield holder / "version"
        finally:
            shutil.rmtree(holder, ignore_errors=True)

    def next_version(self, name: str) -> str:
        """The name of the next version, for a bundle `name`. Numbers are not reused."""
        return f"{self._read()[0] + 1:04d}-{name}"

    def add(self, folder: Path, version: str, *, instead_of: str | None = None) -> None:
        """Make a finished folder the current version; it may replace the version `instead_of`."""
        try:
            folder.rename(self.versions / version)
            _sync_folder(self.versions)
        except OSError as error:
            raise SlimdeployError(f"cannot write {self.versions / version}: {error.strerror}") from error
        kept = [name for name in self.active() if name != instead_of]
        self._activate([*kept, version][-KEPT:], installed=int(version.split("-")[0]))

    def drop_current(self) -> str:
        """Make the previous version the current one; returns its name. The other folder is kept until the
        next clean.
        """
        installed, names = self._read()
        self._activate(names[:-1], installed=installed)
        return names[-2]

    def _read(self) -> tuple[int, list[str]]:
        """The number of versions ever installed, and the names of those in use."""
        path = self.root / "active.json"
        if not path.exists():
            return 0, []
        document = artifacts.read_json(path, "list of deployed versions")
        try:
            installed, names = document["installed"], document["versions"]
            valid = (
                isinstance(installed, int) and isinstance(names, list) and all(map(_VERSION.fullmatch, names))
            )
        except (KeyError, TypeError):
            valid = False
        if not valid:
            raise SlimdeployError(f"{path} is damaged: remove it and deploy again")
        return installed, names

    def _activate(self, names: list[str], *, installed: int) -> None:
        document = {"format": 1, "installed": installed, "versions": names}
        artifacts.write_json(self.root / "active.json", document)
        _sync_folder(self.root)


def _sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk: a previous rename then survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
