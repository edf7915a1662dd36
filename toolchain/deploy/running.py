"""The running servers of this device: each records its address and the version that it serves.

    ROOT/servers/ID.json     {"url": …, "version": …, "failed": {version: reason}}
    ROOT/servers/.ID.json.lock   locked while the server runs

ID is random: servers in containers that share a store may have the same process ID.

A deploy waits for them, so that its result also tells which version is served.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import exclusive, is_held, lock_file

WAIT_S = 30.0
"""Maximum time that a deploy waits for servers to switch, in seconds."""
_STEP_S = 0.05
_NOT_YET = "has not switched to it yet"


@dataclass(frozen=True)
class ServerState:
    """A running server. `error`: why it doesn't serve the expected version; None if it does."""

    url: str
    version: str
    error: str | None = None

    def __str__(self) -> str:
        return f"{self.url} serves {self.version}" + (f": {self.error}" if self.error else " now")


class Registration:
    """The entry of a server. If it can't be written (a read-only store), the server runs anyway."""

    def __init__(self, root: Path, url: str) -> None:
        self._path, self._url = root / "servers" / f"{uuid.uuid4().hex}.json", url
        self._held = contextlib.ExitStack()
        self._entered = False

    def tell(self, version: str, failed: dict[str, str] | None = None) -> None:
        """Record the version that is served from now on, and failed ones."""
        with contextlib.suppress(SlimdeployError, OSError):
            if not self._entered:
                self._path.parent.mkdir(exist_ok=True)
                self._held.enter_context(exclusive(self._path, "the entry of this server"))
                self._entered = True
                self._remove_ended()
            document = {"url": self._url, "version": version, "failed": failed or {}}
            artifacts.write_json(self._path, document)

    def remove(self) -> None:
        """Remove the entry: the server ends."""
        if self._entered:
            self._path.unlink(missing_ok=True)
            self._held.close()

    def _remove_ended(self) -> None:
        """Remove entries of killed servers."""
        for path in self._path.parent.glob("*.json"):
            if not is_held(path):
                path.unlink(missing_ok=True)
                lock_file(path).unlink(missing_ok=True)


def wait_for_servers(root: Path, version: str, *, limit_s: float = WAIT_S) -> list[ServerState]:
    """Every server that runs on the store in `root`, as soon as it serves `version`, has failed to, or the
    time is over.
    """
    end = time.monotonic() + limit_s
    while True:
        found = [_state(document, version) for document in _documents(root)]
        open_ones = [state for state in found if state.error == _NOT_YET]
        if not open_ones or time.monotonic() > end:
            return found
        time.sleep(_STEP_S)


def _state(document: dict[str, Any], version: str) -> ServerState:
    url, serves = str(document.get("url")), str(document.get("version"))
    failed = document.get("failed")
    reason = failed.get(version) if isinstance(failed, dict) else None
    return ServerState(url, serves, None if serves == version else str(reason or _NOT_YET))


def _documents(root: Path) -> Iterator[dict[str, Any]]:
    """The entries of the running servers."""
    for path in sorted((root / "servers").glob("*.json")):
        with contextlib.suppress(SlimdeployError):  # ended since
            if is_held(path):
                document = artifacts.read_json(path, "state of a server")
                if isinstance(document, dict):
                    yield document
