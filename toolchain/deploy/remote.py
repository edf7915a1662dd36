"""Deploys to other machines over SSH, to all at once; with `--bootstrap` their environments as well."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.bootstrap import COMMAND, Payload, bootstrap, packed
from slimdeploy.toolchain.deploy.bundle import read_bundle
from slimdeploy.toolchain.deploy.ssh import CommandNotFound, LostError
from slimdeploy.toolchain.deploy.transfer import Connection
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.formatting import printable


@dataclass(frozen=True)
class RemoteOptions:
    """How to reach the devices. `arguments` go to `slimdeploy deploy` there."""

    arguments: tuple[str, ...] = ()
    ssh_config: Path | None = None
    command: str = COMMAND
    """The shell command that is slimdeploy there, such as a path into a virtual environment."""
    bootstrap: bool = False
    """Make the environment there first."""
    wheels: Path | None = None
    """With `bootstrap`: a folder with all wheels that the devices need, for those without a package index."""
    attempts: int = 3
    """Connections in a row that may break without a byte copied."""
    retry_s: float = 1.0
    parallel: int = 8


@dataclass(frozen=True)
class HostResult:
    """How one device did. `environment` is what `bootstrap` returns, `deployment` what `slimdeploy deploy
    --json` printed there.
    """

    host: str
    seconds: float
    environment: dict[str, Any] | None = None
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
    tell: Callable[[str], None] = lambda line: None,
) -> list[HostResult]:
    """Deploy `bundle` to all hosts at once; results in the order of `hosts`. With None roll them back, or
    with `options.bootstrap` make their environments alone. `tell` is given a line for each host that is done.

    Raises SlimdeployError where the bundle is no bundle or a host is no host, before any is touched.
    """
    if not shutil.which("ssh"):
        raise SlimdeployError("this needs ssh: sudo apt install openssh-client")
    for host in hosts:
        if not host or host.startswith("-") or any(c.isspace() for c in host):
            raise SlimdeployError(f"{host!r} is not a host: user@name, or a Host of the SSH configuration")
    if bundle is not None:
        read_bundle(bundle)
    digest = None if bundle is None else artifacts.sha256_file(bundle)
    with packed(options.wheels) if options.bootstrap else contextlib.nullcontext() as payload:

        def one(host: str) -> HostResult:
            connection = Connection(host, options.ssh_config, options.attempts, options.retry_s)
            remote = _Remote(options, connection, lambda line: tell(f"{host}: {line}"))
            result = remote.deploy(bundle, digest, payload)
            remote.tell(result.error or "done")
            return result

        with ThreadPoolExecutor(options.parallel) as pool:
            return list(pool.map(one, dict.fromkeys(hosts)))


@dataclass(frozen=True)
class _Remote:
    """One device and what is to be done there."""

    options: RemoteOptions
    connection: Connection
    tell: Callable[[str], None]

    def deploy(self, bundle: Path | None, digest: str | None, payload: Payload | None) -> HostResult:
        started = time.monotonic()
        environment = deployment = error = None
        try:
            if payload:
                environment = bootstrap(self.connection, payload, self.tell)
            if bundle or not payload:
                deployment = self._deploy(bundle, digest)
        except (SlimdeployError, LostError) as failure:
            error = str(failure)
        except Exception as failure:  # whatever one host brings about, the results of the others are kept
            error = printable(f"internal error, {type(failure).__name__}: {failure}")
        seconds, connection = round(time.monotonic() - started, 3), self.connection
        return HostResult(connection.host, seconds, environment, deployment, error, connection.copies)

    def _deploy(self, bundle: Path | None, digest: str | None) -> dict[str, Any]:
        arguments = shlex.join(self.options.arguments)
        if bundle is None:
            return self._slimdeploy(f"--rollback {arguments}")
        with self.connection.sent(bundle, digest) as place:
            return self._slimdeploy(f"{place} {arguments}")

    def _slimdeploy(self, arguments: str) -> dict[str, Any]:
        try:
            output = self.connection.run(f"{self.options.command} deploy {arguments} --json")
        except CommandNotFound as error:
            raise SlimdeployError(
                f"{error}; install slimdeploy there with slimdeploy deploy --bootstrap --host "
                f"{shlex.quote(self.connection.host)}, or say where it is with --remote-command"
            ) from error
        try:
            document = json.loads(output)
        except ValueError:
            document = None
        if not _is_deployment(document):
            raise SlimdeployError(f"slimdeploy there answered {output[:80]!r} instead of JSON")
        return document


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
