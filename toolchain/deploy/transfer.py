"""Files to another machine over SSH. On the device nothing but a shell is needed.

A file is copied to one of this machine and user alone, named after its hash: what a cut connection left there
is a beginning of the same bytes, and the next attempt goes on behind it. It is removed once it was used or
refused, and by the next transfer from here where that one was killed.
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
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.locks import exclusive

INCOMING = '"$HOME/.cache/slimdeploy/incoming"'
STALE = "-type f -mtime +0 -exec rm -f {} +"
"""For find: copies that weren't touched for a day, whoever began them."""
DISK_MARGIN = 64 << 20
"""Bytes that stay free on the device's disk after the copy."""


@dataclass
class Connection:
    """One device; a connection is made for each command."""

    host: str
    ssh_config: Path | None = None
    attempts: int = 3
    """Connections in a row that may break without a byte copied."""
    retry_s: float = 1.0
    copies: int = 0
    """How many times a copy had to be begun or taken up."""

    def run(self, script: str, stdin: Any = subprocess.DEVNULL) -> str:
        """Output of a shell script there; raises what `Shell.run` raises."""
        return Shell(self.host, self.ssh_config).run(script, stdin)

    @contextlib.contextmanager
    def sent(self, file: Path, digest: str | None = None) -> Iterator[str]:
        """Copy a file there. Yields the shell word of the copy, which is removed at the end, but not where
        the connection is lost. `digest` is the file's SHA-256 where it is known.

        Raises SlimdeployError where another process sends to this host, or the disk there is too small.
        """
        digest, sender = digest or artifacts.sha256_file(file), sender_of(self.host)
        place = f"{INCOMING}/{sender}-{digest}"
        with exclusive(locks() / sender, f"host {self.host}"):
            try:
                self._copy(file, place, sender)
                if self.run(f"sha256sum < {place}").split()[:1] != [digest]:
                    raise SlimdeployError("the copy was damaged and is removed: deploy again")
                yield place
            except SlimdeployError:
                self._remove(place)
                raise
            self._remove(place)

    def _copy(self, file: Path, place: str, sender: str) -> None:
        """Append what is missing of the file, again and again as long as something arrives."""
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
        """Bytes of the file that are there, and bytes free on that disk. Removes what earlier transfers left:
        other copies of this sender, and old ones of anybody.
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
    """Names what this user sends from this machine to `host`: two names may be one device, and two machines
    may send to one device at once.
    """
    facts = (host, socket.gethostname(), os.getuid())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def locks() -> Path:
    """The folder of the locks that keep two transfers from here to one host apart."""
    return Path(os.environ.get("SLIMDEPLOY_CACHE") or Path.home() / ".cache/slimdeploy") / "deploys"


def _check_space(missing: int, free: int) -> None:
    needed = missing + DISK_MARGIN
    if missing and free < needed:
        raise SlimdeployError(
            f"not enough disk space for the copy: {needed >> 20} MiB needed, {free >> 20} MiB free in "
            "~/.cache/slimdeploy there"
        )
