"""`slimdeploy deploy`: install a bundle on this device, or on others over SSH."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.deploy_output import installed_table, remote_output, said
from slimdeploy.toolchain.commands.options import threads_option
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.formatting import printable
from slimdeploy.toolchain.paths import InputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.deploy.running import ServerState


INSTALLING = {"allowed_signers", "precision", "backend", "batch"}
REACHING = {"ssh_config", "remote_command", "bootstrap"}
"""Options that apply only when a bundle is installed; options that apply only over SSH."""


@command("deploy")
@click.argument("bundle", type=InputPath(), required=False)
@click.option("--rollback", is_flag=True, help="Go back to the version before the current one.")
@click.option("--root", type=click.Path(path_type=Path),
              help="Folder of the installed versions. [default: $SLIMDEPLOY_HOME or "
              "~/.local/share/slimdeploy]")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8", "mixed"]),
              help="Install the model of this precision. [default: the fastest for the backend]")  # fmt: skip
@click.option("--backend", type=click.Choice(["tensorrt", "onnxruntime"]),
              help="Runtime. [default: tensorrt where it is installed]")  # fmt: skip
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Maximum batch size.",
)
@threads_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Duration of the latency measurement in seconds.",
)
@click.option("--allowed-signers", type=InputPath(), metavar="FILE",
              help="From now on install only bundles signed by a key in FILE (OpenSSH format).")  # fmt: skip
@click.option(
    "--host", "hosts", multiple=True, metavar="USER@HOST", help="Deploy to this host over SSH. Repeatable."
)
@click.option(
    "--hosts",
    "hosts_file",
    type=InputPath(),
    metavar="FILE",
    help="Deploy to all hosts in this file, one per line.",
)
@click.option(
    "--ssh-config", type=InputPath(), metavar="FILE", help="SSH configuration to use. [default: your own]"
)
@click.option("--remote-command", metavar="COMMAND",
              help="Command that runs slimdeploy on the host, e.g. a path into a virtual environment. "
              "[default: the environment of --bootstrap, else slimdeploy]")  # fmt: skip
@click.option(
    "--bootstrap",
    is_flag=True,
    help="First install this version of slimdeploy on the host, in a separate environment.",
)
@click.option("--wheels", type=InputPath(), metavar="DIR",
              help="With --bootstrap: install only from the wheels in DIR, without internet.")  # fmt: skip
def deploy(
    bundle: Path | None,
    rollback: bool,
    root: Path | None,
    precision: str | None,
    backend: str | None,
    batch: int,
    threads: int | None,
    seconds: float,
    allowed_signers: Path | None,
    hosts: tuple[str, ...],
    hosts_file: Path | None,
    ssh_config: Path | None,
    remote_command: str | None,
    bootstrap: bool,
    wheels: Path | None,
) -> Output:
    """Install BUNDLE: verify, build, check against the golden outputs, measure, switch over.

    If a step fails or the process is killed, the previous version stays in use. With --host or --hosts the
    bundle is copied to the hosts and installed there with the other options. --bootstrap first creates the
    environment on the hosts; BUNDLE may then be omitted.
    """
    given = _given()
    if rollback + (bundle is not None) != 1 and (rollback or not bootstrap):
        raise SlimdeployError("name a bundle, or pass --rollback or --bootstrap")
    if bootstrap:
        _refuse(given & {"rollback", "remote_command"}, "cannot be used with --bootstrap")
    else:
        _refuse(given & {"wheels"}, "needs --bootstrap")
    if rollback:
        _refuse(given & INSTALLING, "needs a bundle: --rollback does not change the previous version")
    if not (hosts or hosts_file):
        _refuse(given & REACHING, "needs --host or --hosts")
    if hosts or hosts_file:
        if allowed_signers:
            raise SlimdeployError(
                "--allowed-signers can be set only on the device: run slimdeploy deploy there"
            )
        from slimdeploy.toolchain.deploy import remote
        from slimdeploy.toolchain.progress import log, working

        values = {
            "root": root,
            "precision": precision,
            "backend": backend,
            "batch": batch,
            "threads": threads,
            "seconds": seconds,
        }
        forwarded = tuple(f"--{name}={value}" for name, value in values.items() if name in given)
        reach = remote.RemoteOptions(
            forwarded, ssh_config, remote_command or remote.COMMAND, bootstrap=bootstrap, wheels=wheels
        )
        everywhere = [*hosts, *(remote.read_hosts(hosts_file) if hosts_file else [])]
        with working("over SSH"):
            results = remote.deploy_to_hosts(
                bundle, everywhere, reach, tell=lambda line: log(printable(line))
            )
        return remote_output(results)
    from slimdeploy.toolchain.deploy import device
    from slimdeploy.toolchain.deploy.engine import EngineOptions
    from slimdeploy.toolchain.deploy.running import to_json, wait_for_servers
    from slimdeploy.toolchain.deploy.store import Store, default_root

    engine = EngineOptions(precision, backend, batch)
    options = device.DeployOptions(engine, threads, allowed_signers, seconds)
    store = Store(root.expanduser() if root else default_root())
    if bundle is None:
        version, golden = device.rollback(store, options)
        servers = wait_for_servers(store.root, version)
        document = {"version": version, "golden": vars(golden), "servers": to_json(servers)}
        text = [f"back to {version}: golden outputs differ by {golden.max_error:.2g}", *map(said, servers)]
        return Output(document, "\n".join(text), _behind(servers, version))
    made = device.deploy(bundle, store, options)
    servers = wait_for_servers(store.root, made.version)
    document = {**made.to_json(), "servers": to_json(servers)}
    return Output(document, installed_table(document, store.root, servers), _behind(servers, made.version))


def _given() -> set[str]:
    """Names of the options given on the command line."""
    context = click.get_current_context()
    source = context.get_parameter_source
    return {name for name in context.params if source(name) is ParameterSource.COMMANDLINE}


def _refuse(names: set[str], reason: str) -> None:
    """Raise SlimdeployError for the first option that would be ignored."""
    for name in sorted(names):
        raise SlimdeployError(f"--{name.replace('_', '-')} {reason}")


def _behind(servers: list[ServerState], version: str) -> str | None:
    """The error if a running server does not serve the installed version; else None."""
    behind = [server for server in servers if server.error]
    return "; ".join(f"{version} is installed, but {said(server)}" for server in behind) or None
