"""Copy files to another machine over SSH. The device needs only a shell.

The copy on the device has a name of this machine, this user and its hash: after a broken connection it
contains the beginning of the same bytes, and the next attempt continues it. It is removed after it was used
or refused, or by the next transfer from here if this process was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.ssh import LostError, Shell
from slimdeploy.toolchain.deploy.store import DISK_MARGIN
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import exclusive

INCOMING = '"$HOME/.cache/slimdeploy/incoming"'
STALE = "-type f -mtime +0 -exec rm -f {} +"
"""For find: copies older than a day, of any sender."""


@dataclass
class Connection:
    """One device; each command uses a new connection."""

    host: str
    ssh_config: Path | None = None
    attempts: int = 3
    """Maximum number of consecutive broken connections without progress."""
    retry_s: float = 1.0
    copies: int = 0
    """How many times a copy was started or resumed."""

    def run(self, script: str, stdin: Any = subprocess.DEVNULL) -> str:
        """Output of a shell script on the device; raises the errors of `Shell.run`."""
        return Shell(self.host, self.ssh_config).run(script, stdin)

    @contextlib.contextmanager
    def sent(self, file: Path, digest: str | None = None) -> Iterator[str]:
        """Copy a file to the device. Yields the shell word of the copy, which is removed at the end, unless
        the connection is lost. `digest` is the file's SHA-256, if known.

        Raises SlimdeployError if another process sends to this host, or the disk there is too small.
        """
        digest, sender = digest or artifacts.sha256_file(file), sender_of(self.host)
        place = f"{INCOMING}/{sender}-{digest}"
        artifacts.make_folder(locks())
        with exclusive(locks() / sender, f"host {self.host}"):
            try:
                self._copy(file, place, sender)
                if self.run(f"sha256sum < {place}").split()[:1] != [digest]:
                    raise SlimdeployError("the copy was damaged and has been removed: deploy again")
                yield place
            except SlimdeployError:
                self._remove(place)
                raise
            self._remove(place)

    def _copy(self, file: Path, place: str, sender: str) -> None:
        """Append the missing part of the file, with retries as long as there is progress."""
        total, before, failures = file.stat().st_size, -1, 0
        while True:
            try:
                there, free = self._there(place, sender)
                if there > total:
                    self.run(f"rm -f {place}")
                    there = 0
                failures = 0 if there > before else failures
                before = there
                _check_space(total - there, free)
                if there < total:
                    self.copies += 1
                    with open(file, "rb") as content:
                        content.seek(there)
                        self.run(f"cat >> {place}", stdin=content)
                return
            except LostError:
                failures += 1
                if failures >= self.attempts:
                    raise
                time.sleep(self.retry_s * failures)

    def _there(self, place: str, sender: str) -> tuple[int, int]:
        """Bytes of the file on the device, and free bytes on its disk. Removes leftovers of earlier
        transfers: other copies of this sender, and old ones of any sender.
        """
        others = f'for f in {INCOMING}/{sender}-*; do [ "$f" = {place} ] || rm -f "$f"; done'
        made = f"mkdir -p {INCOMING} && touch {place} && {others}; find {INCOMING} {STALE}"
        output = self.run(f"{made}; wc -c < {place} && df -Pk {INCOMING}")
        found = re.fullmatch(r"\s*(\d+)\n.*\s(\d+)\s+\d+%[^\n]*\n", output, re.DOTALL)
        if not found:
            raise SlimdeployError(f"wc and df there answered {output[:80]!r}")
        return int(found[1]), int(found[2]) << 10

    def _remove(self, place: str) -> None:
        with contextlib.suppress(LostError, SlimdeployError):  # the next transfer from here removes it
            self.run(f"rm -f {place}")


def sender_of(host: str) -> str:
    """Identifies transfers of this user from this machine to `host`: two names may refer to one device, and
    two machines may send to one device at the same time.
    """
    facts = (host, socket.gethostname(), os.getuid())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def locks() -> Path:
    """The folder of the locks that prevent parallel transfers to one host from here."""
    return artifacts.cache_folder("deploys")


def _check_space(missing: int, free: int) -> None:
    needed = missing + DISK_MARGIN
    if missing and free < needed:
        raise SlimdeployError(
            f"not enough disk space for the copy: {needed >> 20} MiB needed, {free >> 20} MiB free in "
            "~/.cache/slimdeploy there"
        )
