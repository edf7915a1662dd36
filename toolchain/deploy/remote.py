"""Deploys to other machines over SSH. On the device nothing but a shell and slimdeploy is needed.

The bundle is copied to a file of this machine and user alone, named after its hash: what a cut connection
left there is a beginning of the same bytes, and the next attempt goes on behind it. It is removed once it was
installed or refused, and by the next deploy from here where that one was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.bundle import read_bundle
from slimdeploy.toolchain.deploy.ssh import LostError, Shell
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.formatting import printable
from slimdeploy.toolchain.locks import exclusive

INCOMING = '"$HOME/.cache/slimdeploy/incoming"'
STALE = "-type f -mtime +0 -exec rm -f {} +"
"""For find: copies that weren't touched for a day, whoever began them."""
DISK_MARGIN = 64 << 20
"""Bytes that stay free on the device's disk after the copy."""


@dataclass(frozen=True)
class RemoteOptions:
    """How to reach the devices. `arguments` go to `slimdeploy deploy` there."""

    arguments: tuple[str, ...] = ()
    ssh_config: Path | None = None
    command: str = "slimdeploy"
    """The shell command that is slimdeploy there, such as a path into a virtual environment."""
    attempts: int = 3
    """Connections in a row that may break without a byte copied."""
    retry_s: float = 1.0
    parallel: int = 8


@dataclass(frozen=True)
class HostResult:
    """How one device did. `deployment` is what `slimdeploy deploy --json` printed there."""

    host: str
    seconds: float
    deployment: dict[str, Any] | None = None
    error: str | None = None
    connections: int = 0
    """How many times the copy had to be taken up."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_hosts(path: Path) -> list[str]:
    """One host a line, as ssh takes it; blank lines and what follows a # are left out."""
    lines = artifacts.read_text(path, "list of hosts").splitlines()
    hosts = [line.partition("#")[0].strip() for line in lines]
    if not any(hosts):
        raise SlimdeployError(f"{path} names no host: one a line, as ssh takes it")
    return [host for host in hosts if host]


def deploy_to_hosts(
    bundle: Path | None,
    hosts: Sequence[str],
    options: RemoteOptions,
    *,
    progress: Callable[[HostResult], None] = lambda result: None,
) -> list[HostResult]:
    """Deploy `bundle` to all hosts at once, or with None roll them back; results in the order of `hosts`.

    Raises SlimdeployError where the bundle is no bundle or a host is no host, before any is touched.
    """
    if not shutil.which("ssh"):
        raise SlimdeployError("this needs ssh: sudo apt install openssh-client")
    for host in hosts:
        if not host or host.startswith("-") or any(c.isspace() for c in host):
            raise SlimdeployError(f"{host!r} is no host: user@name, or a Host of the SSH configuration")
    if bundle is not None:
        read_bundle(bundle)
    digest = None if bundle is None else artifacts.sha256_file(bundle)

    def one(host: str) -> HostResult:
        result = _Remote(host, options).deploy(bundle, digest)
        progress(result)
        return result

    with ThreadPoolExecutor(options.parallel) as pool:
        return list(pool.map(one, dict.fromkeys(hosts)))


@dataclass
class _Remote:
    """One device and its connections, one for each command."""

    host: str
    options: RemoteOptions
    connections: int = 0

    def deploy(self, bundle: Path | None, digest: str | None) -> HostResult:
        started = time.monotonic()
        try:
            found, error = self._deploy(bundle, digest), None
        except (SlimdeployError, LostError) as failure:
            found, error = None, str(failure)
        except Exception as failure:  # whatever one host brings about, the results of the others are kept
            found, error = None, printable(f"internal error, {type(failure).__name__}: {failure}")
        return HostResult(self.host, round(time.monotonic() - started, 3), found, error, self.connections)

    def _deploy(self, bundle: Path | None, digest: str | None) -> dict[str, Any]:
        arguments = shlex.join(self.options.arguments)
        if bundle is None:
            return self._slimdeploy(f"--rollback {arguments}")
        sender = _sender(self.host)
        place = f"{INCOMING}/{sender}-{digest}"
        with exclusive(_locks() / sender, f"host {self.host}"):
            try:
                self._copy(bundle, place, sender)
                if self._run(f"sha256sum < {place}").split()[:1] != [digest]:
                    raise SlimdeployError("the copy was damaged and is removed: deploy again")
                found = self._slimdeploy(f"{place} {arguments}")
            except SlimdeployError:
                self._remove(place)
                raise
            self._remove(place)
            return found

    def _copy(self, bundle: Path, place: str, sender: str) -> None:
        """Append what is missing of the bundle, again and again as long as something arrives."""
        total, before, failures = bundle.stat().st_size, -1, 0
        while True:
            try:
                there, free = self._there(place, sender)
                if there > total:
                    self._run(f"rm -f {place}")
                    there = 0
                failures = 0 if there > before else failures
                before = there
                _check_space(total - there, free)
                if there < total:
                    self.connections += 1
                    with open(bundle, "rb") as file:
                        file.seek(there)
                        self._run(f"cat >> {place}", stdin=file)
                return
            except LostError:
                failures += 1
                if failures >= self.options.attempts:
                    raise
                time.sleep(self.options.retry_s * failures)

    def _there(self, place: str, sender: str) -> tuple[int, int]:
        """Bytes of the bundle that are there, and bytes free on that disk. Removes what earlier deploys left:
        other copies of this sender, and old ones of anybody.
        """
        others = f'for f in {INCOMING}/{sender}-*; do [ "$f" = {place} ] || rm -f "$f"; done'
        made = f"mkdir -p {INCOMING} && touch {place} && {others}; find {INCOMING} {STALE}"
        output = self._run(f"{made}; wc -c < {place} && df -Pk {INCOMING}")
        found = re.fullmatch(r"\s*(\d+)\n.*\s(\d+)\s+\d+%[^\n]*\n", output, re.DOTALL)
        if not found:
            raise SlimdeployError(f"wc and df there answered {output[:80]!r}")
        return int(found[1]), int(found[2]) << 10

    def _remove(self, place: str) -> None:
        with contextlib.suppress(LostError, SlimdeployError):  # the next deploy from here removes it
            self._run(f"rm -f {place}")

    def _slimdeploy(self, arguments: str) -> dict[str, Any]:
        output = self._run(f"{self.options.command} deploy {arguments} --json")
        try:
            document = json.loads(output)
        except ValueError:
            document = None
        if not _is_deployment(document):
            raise SlimdeployError(f"slimdeploy there answered {output[:80]!r} instead of JSON")
        return document

    def _run(self, script: str, stdin: Any = subprocess.DEVNULL) -> str:
        return Shell(self.host, self.options.ssh_config).run(script, stdin)


def _sender(host: str) -> str:
    """Names what this user sends from this machine to `host`: two names may be one device, and two machines
    may send to one device at once.
    """
    facts = (host, socket.gethostname(), os.getuid())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _locks() -> Path:
    """The folder of the locks that keep two deploys from here to one host apart."""
    return Path(os.environ.get("SLIMDEPLOY_CACHE") or Path.home() / ".cache/slimdeploy") / "deploys"


def _check_space(missing: int, free: int) -> None:
    needed = missing + DISK_MARGIN
    if missing and free < needed:
        raise SlimdeployError(
            f"not enough disk space for the copy: {needed >> 20} MiB needed, {free >> 20} MiB free in "
            "~/.cache/slimdeploy there"
        )


def _is_deployment(document: Any) -> bool:
    """Whether it is what `slimdeploy deploy --json` prints, as far as it is used here."""
    if not isinstance(document, dict) or not isinstance(document.get("version"), str):
        return False
    texts = [document.get(key, "") for key in ("variant", "backend")]
    parts = [document.get("golden"), document.get("latency_ms", {"p50": 0.0})]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(p, dict) for p in parts):
        return False
    numbers = (parts[0].get("max_error"), parts[1].get("p50"))
    return all(isinstance(number, (int, float)) for number in numbers)
