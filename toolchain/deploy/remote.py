"""Deploys to other machines over the system's OpenSSH: the user's own keys, configuration and known hosts.

On the device nothing but a shell and slimdeploy is needed. The bundle is copied to a file named after its
hash, so what a cut connection left there is a beginning of the same bytes, and the next attempt goes on
behind it. The host's name is part of it too: two names may be one device, and both write at once.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.bundle import read_bundle
from slimdeploy.toolchain.errors import SlimdeployError

INCOMING = '"$HOME/.cache/slimdeploy/incoming"'
KEEPALIVE = ("ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3", "BatchMode=yes")
"""A dead connection is noticed within 15 s; no question is asked that nobody answers."""

CONNECTION_LOST, NOT_FOUND = 255, 127
"""Exit codes of ssh itself and of a shell that doesn't find a command."""


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
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error
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


class _LostError(Exception):
    """The connection couldn't be made, or broke."""


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
        except (SlimdeployError, _LostError) as failure:
            found, error = None, str(failure)
        return HostResult(self.host, round(time.monotonic() - started, 3), found, error, self.connections)

    def _deploy(self, bundle: Path | None, digest: str | None) -> dict[str, Any]:
        arguments = shlex.join(self.options.arguments)
        if bundle is None:
            return self._slimdeploy(f"--rollback {arguments}")
        place = f"{INCOMING}/{digest}-{hashlib.sha256(self.host.encode()).hexdigest()[:8]}"
        self._copy(bundle, place)
        if self._run(f"sha256sum < {place}").split()[:1] != [digest]:
            self._run(f"rm -f {place}")
            raise SlimdeployError("the copy was damaged and is removed: deploy again")
        found = self._slimdeploy(f"{place} {arguments}")
        self._run(f"rm -f {place}")
        return found

    def _copy(self, bundle: Path, place: str) -> None:
        """Append what is missing of the bundle, again and again as long as something arrives."""
        total, before, failures = bundle.stat().st_size, -1, 0
        while True:
            try:
                there = int(self._run(f"mkdir -p {INCOMING} && touch {place} && wc -c < {place}"))
                if there > total:
                    self._run(f"rm -f {place}")
                    continue
                failures = 0 if there > before else failures
                before = there
                if there == total:
                    return
                self.connections += 1
                with open(bundle, "rb") as file:
                    file.seek(there)
                    self._run(f"cat >> {place}", stdin=file)
            except _LostError:
                failures += 1
                if failures >= self.options.attempts:
                    raise
                time.sleep(self.options.retry_s * failures)

    def _slimdeploy(self, arguments: str) -> dict[str, Any]:
        output = self._run(f"{self.options.command} deploy {arguments} --json")
        try:
            return json.loads(output)
        except ValueError:
            raise SlimdeployError(f"slimdeploy there answered {output[:80]!r} instead of JSON") from None

    def _run(self, script: str, stdin: Any = subprocess.DEVNULL) -> str:
        """Run a shell script there and return its output; raises SlimdeployError with its last line of
        errors.
        """
        config = ["-F", str(self.options.ssh_config)] if self.options.ssh_config else []
        settings = [word for setting in KEEPALIVE for word in ("-o", setting)]
        command = ["ssh", *config, *settings, "--", self.host, shlex.join(["sh", "-c", script])]
        done = subprocess.run(command, stdin=stdin, capture_output=True, check=False)
        if done.returncode == 0:
            return done.stdout.decode(errors="replace")
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        said = lines[-1].strip() if lines else f"exit code {done.returncode}"
        if done.returncode == CONNECTION_LOST:
            raise _LostError(f"ssh: {said.removeprefix('ssh: ')}")
        if done.returncode == NOT_FOUND:
            raise SlimdeployError(
                f"{said}; say where it is with --remote-command, or install it there: "
                "pip install 'slimdeploy[device,cpu]'"
            )
        raise SlimdeployError(said.removeprefix("slimdeploy: "))
