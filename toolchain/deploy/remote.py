"""Deploy to other machines over SSH, in parallel; with `--bootstrap` also create their environments."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy.bootstrap import COMMAND, Payload, bootstrap, packed
from slimdeploy.toolchain.deploy.bundle import read_bundle
from slimdeploy.toolchain.deploy.options import SshOptions
from slimdeploy.toolchain.deploy.remote_deployment import RemoteDeployment, read_deployment
from slimdeploy.toolchain.deploy.ssh import CommandNotFound, LostError
from slimdeploy.toolchain.deploy.transfer import Connection
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.formatting import printable


@dataclass(frozen=True)
class RemoteOptions(SshOptions):
    """How to reach the devices. `arguments` are passed to `slimdeploy deploy` there."""

    arguments: tuple[str, ...] = ()
    attempts: int = 3
    """Maximum number of consecutive broken connections without progress."""
    retry_s: float = 1.0
    parallel: int = 8


@dataclass(frozen=True)
class HostResult:
    """The result of one device. `environment` is the result of `bootstrap`."""

    host: str
    seconds: float
    environment: dict[str, Any] | None = None
    deployment: RemoteDeployment | None = None
    problem: SlimdeployError | None = None
    """The error; None if it is deployed."""
    connections: int = 0
    """How many times the copy was resumed."""

    @property
    def error(self) -> str | None:
        """The problem in one line."""
        return str(self.problem) if self.problem else None

    def to_json(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "seconds": self.seconds,
            "environment": self.environment,
            "deployment": self.deployment.document if self.deployment else None,
            "error": self.error,
            "connections": self.connections,
        }


def read_hosts(path: Path) -> list[str]:
    """One host per line, as for ssh; blank lines and comments after # are ignored."""
    lines = artifacts.read_text(path, "list of hosts").splitlines()
    hosts = {number: host for number, line in enumerate(lines, 1) if (host := line.partition("#")[0].strip())}
    if not hosts:
        raise SlimdeployError(f"{path} contains no host: write one per line, as for ssh")
    for number, host in hosts.items():
        try:
            _check_host(host)
        except SlimdeployError as error:
            raise SlimdeployError(f"{path}, line {number}: {error}") from error
    return list(hosts.values())


def _check_host(host: str) -> None:
    if not host or host.startswith("-") or any(c.isspace() for c in host):
        raise SlimdeployError(f"{host!r} is not a host: user@name, or a Host of the SSH configuration")


def deploy_to_hosts(
    bundle: Path | None,
    hosts: Sequence[str],
    options: RemoteOptions,
    *,
    tell: Callable[[str], None] = lambda line: None,
) -> list[HostResult]:
    """Deploy `bundle` to all hosts in parallel; results in the order of `hosts`. With None roll them back, or
    with `options.bootstrap` only create their environments. `tell` is called with a line for each finished
    host.

    Raises SlimdeployError for an invalid bundle or host, before any is changed.
    """
    if not shutil.which("ssh"):
        raise SlimdeployError("this needs ssh: sudo apt install openssh-client")
    for host in hosts:
        _check_host(host)
    if bundle is not None:
        read_bundle(bundle)
    digest = None if bundle is None else artifacts.sha256_file(bundle)
    config = Path(options.ssh_config) if options.ssh_config else None
    wheels = Path(options.wheels) if options.wheels else None
    with packed(wheels) if options.bootstrap else contextlib.nullcontext() as payload:

        def one(host: str) -> HostResult:
            connection = Connection(host, config, options.attempts, options.retry_s)
            remote = _Remote(options, connection, lambda line: tell(f"{host}: {line}"))
            result = remote.deploy(bundle, digest, payload)
            remote.tell(result.error or "done")
            return result

        with ThreadPoolExecutor(options.parallel) as pool:
            return list(pool.map(one, dict.fromkeys(hosts)))


@dataclass(frozen=True)
class _Remote:
    """One device and the work to do there."""

    options: RemoteOptions
    connection: Connection
    tell: Callable[[str], None]

    def deploy(self, bundle: Path | None, digest: str | None, payload: Payload | None) -> HostResult:
        started = time.monotonic()
        environment = deployment = problem = None
        try:
            if payload:
                environment = bootstrap(self.connection, payload, self.tell)
            if bundle or not payload:
                deployment = self._deploy(bundle, digest)
        except SlimdeployError as failure:
            problem = failure
        except LostError as failure:
            problem = SlimdeployError(str(failure))
        except Exception as failure:  # any error of one host: the results of the others are kept
            problem = SlimdeployError(printable(f"internal error, {type(failure).__name__}: {failure}"))
        seconds, connection = round(time.monotonic() - started, 3), self.connection
        return HostResult(connection.host, seconds, environment, deployment, problem, connection.copies)

    def _deploy(self, bundle: Path | None, digest: str | None) -> RemoteDeployment:
        arguments = shlex.join(self.options.arguments)
        if bundle is None:
            return self._slimdeploy(f"--rollback {arguments}")
        with self.connection.sent(bundle, digest) as place:
            return self._slimdeploy(f"{place} {arguments}")

    def _slimdeploy(self, arguments: str) -> RemoteDeployment:
        command = self.options.remote_command or COMMAND
        try:
            output = self.connection.run(f"{command} deploy {arguments} --json")
        except CommandNotFound as error:
            raise SlimdeployError(
                f"{error}; install slimdeploy there with slimdeploy deploy --bootstrap --host "
                f"{shlex.quote(self.connection.host)}, or say where it is with `remote_command`"
            ) from error
        return read_deployment(output)
