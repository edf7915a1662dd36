"""`slimdeploy.deploy` and `slimdeploy.rollback`: install a bundle on this device, or on others over SSH."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.deploy import device
from slimdeploy.toolchain.deploy.device import Deployment, Restored
from slimdeploy.toolchain.deploy.options import DeployOptions, SshOptions
from slimdeploy.toolchain.deploy.remote import HostResult, RemoteOptions, deploy_to_hosts
from slimdeploy.toolchain.deploy.root import default_root
from slimdeploy.toolchain.deploy.running import ServerState, wait_for_servers
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.library.keywords import takes


@dataclass(frozen=True)
class DeployResult:
    """The installed versions: on this device `deployment`, after a rollback `restored`, with the running
    servers; over SSH one entry in `hosts` per device.
    """

    here: Deployment | Restored | None = None
    """What was done on this device."""
    servers: tuple[ServerState, ...] = ()
    hosts: tuple[HostResult, ...] = ()

    @property
    def deployment(self) -> Deployment:
        """The version that was installed on this device. Raises SlimdeployError after a rollback, or with
        `hosts`.
        """
        if not isinstance(self.here, Deployment):
            raise SlimdeployError("nothing was installed on this device: see .restored and .hosts")
        return self.here

    @property
    def restored(self) -> Restored:
        """The version that is in use again on this device. Raises SlimdeployError if it wasn't a rollback
        here.
        """
        if not isinstance(self.here, Restored):
            raise SlimdeployError("nothing was rolled back on this device: see .deployment and .hosts")
        return self.here

    @property
    def failed(self) -> str | None:
        """The error of a device, or of a server that serves another version; None if there is none."""
        if lost := [result for result in self.hosts if result.problem]:
            return f"{len(lost)} of {len(self.hosts)} hosts failed"
        version = self.here.version if self.here else ""
        behind = [server for server in self.servers if server.error]
        return "; ".join(f"{version} is installed, but {server}" for server in behind) or None

    def to_json(self) -> dict[str, Any]:
        if self.here is None:
            return {"hosts": [result.to_json() for result in self.hosts]}
        return {**self.here.to_json(), "servers": [asdict(server) for server in self.servers]}


@takes(SshOptions, into="ssh")
@takes(DeployOptions)
def deploy(
    bundle: str | Path | None,
    *,
    root: str | Path | None = None,
    hosts: str | Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
    ssh: SshOptions,
    options: DeployOptions,
) -> DeployResult:
    """Install `bundle` and make it the version in use: verify, build, check against the golden outputs,
    measure, switch over. If a step fails, the previous version stays in use.

    With `hosts` the bundle is copied to these devices over SSH and installed there, in parallel.

    Args:
        bundle: A file that `package` wrote. None with `bootstrap`: only create the environments.
        root: Folder of the installed versions. Default: $SLIMDEPLOY_HOME or ~/.local/share/slimdeploy.
        hosts: Device or devices to install it on instead of this one, as for ssh, e.g. `user@name`.
        progress: Called with a line for each step on a device.

    Returns:
        The installed version, its check and its speed. Devices that failed have a `problem`; `failed`
        summarises them in one line.

    Raises:
        SlimdeployError: An untrusted bundle, a device without enough space, or contradicting options. With
            `hosts` it is raised before any of them is changed.
        CheckFailed: The outputs on this device differ from those on the host.
    """
    if not hosts:
        _only_over_ssh(ssh)
        if bundle is None:
            raise SlimdeployError("`bundle` is needed: the file that slimdeploy package wrote")
        store = _store(root)
        return _here(store, device.install(Path(bundle), store, options))
    if bundle is None and not ssh.bootstrap:
        raise SlimdeployError("`bundle` is needed, or `bootstrap`")
    if options.allowed_signers:
        raise SlimdeployError("`allowed_signers` can be set only on the device: run slimdeploy deploy there")
    return _there(bundle, hosts, root, options, ssh, progress)


@takes(SshOptions, into="ssh")
def rollback(
    *,
    root: str | Path | None = None,
    hosts: str | Sequence[str] = (),
    threads: int | None = None,
    seconds: float = DeployOptions.seconds,
    progress: Callable[[str], None] = lambda line: None,
    ssh: SshOptions,
) -> DeployResult:
    """Go back to the previous version, after checking it against its golden outputs.

    Args:
        root: Folder of the installed versions. Default: $SLIMDEPLOY_HOME or ~/.local/share/slimdeploy.
        hosts: Device or devices to do it on instead of this one, as for ssh, e.g. `user@name`.
        threads: CPU threads. Default: all cores.
        seconds: Duration of the latency measurement in seconds.
        progress: Called with a line for each step on a device.

    Raises:
        SlimdeployError: There is no previous version, or it is damaged.
        CheckFailed: Its outputs differ from the golden outputs.
    """
    options = DeployOptions(threads=threads, seconds=seconds)
    if ssh.bootstrap:
        raise SlimdeployError("`bootstrap` cannot be used with a rollback")
    if hosts:
        return _there(None, hosts, root, options, ssh, progress)
    _only_over_ssh(ssh)
    store = _store(root)
    return _here(store, device.rollback(store, options))


def _only_over_ssh(ssh: SshOptions) -> None:
    for field in fields(ssh):
        if getattr(ssh, field.name):
            raise SlimdeployError(f"`{field.name}` needs `hosts`")


def _store(root: str | Path | None) -> Store:
    return Store(Path(root).expanduser() if root else default_root())


def _here(store: Store, made: Deployment | Restored) -> DeployResult:
    return DeployResult(made, tuple(wait_for_servers(store.root, made.version)))


def _there(
    bundle: str | Path | None,
    hosts: str | Sequence[str],
    root: str | Path | None,
    options: DeployOptions,
    ssh: SshOptions,
    progress: Callable[[str], None],
) -> DeployResult:
    """Run on `hosts`, with the options that differ from the defaults."""
    values = {"root": root, **vars(options)}
    default = {"root": None, **vars(DeployOptions())}
    arguments = [f"--{name}={value}" for name, value in values.items() if value != default[name]]
    reach = RemoteOptions(arguments=tuple(arguments), **vars(ssh))
    names = [hosts] if isinstance(hosts, str) else hosts
    results = deploy_to_hosts(Path(bundle) if bundle else None, names, reach, tell=progress)
    return DeployResult(hosts=tuple(results))
