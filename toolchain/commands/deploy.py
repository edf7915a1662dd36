"""`slimdeploy deploy`: install a bundle on this device, or on others over SSH."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.deploy_output import deploy_output
from slimdeploy.toolchain.commands.flags import flags, refuse
from slimdeploy.toolchain.deploy.options import DeployOptions, SshOptions
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.paths import InputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.deploy.deploy import DeployResult

OF_A_BUNDLE = ("allowed_signers", "backend", "batch", "precision")
"""Options that apply only when a bundle is installed."""


@command("deploy")
@click.argument("bundle", type=InputPath(), required=False)
@click.option("--rollback", is_flag=True, help="Go back to the version before the current one.")
@click.option("--root", type=InputPath(),
              help="Folder of the installed versions. [default: $SLIMDEPLOY_HOME or "
              "~/.local/share/slimdeploy]")  # fmt: skip
@flags(DeployOptions)
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
@flags(SshOptions, into="ssh")
def deploy(
    bundle: Path | None,
    rollback: bool,
    root: Path | None,
    options: DeployOptions,
    hosts: tuple[str, ...],
    hosts_file: Path | None,
    ssh: SshOptions,
) -> Output:
    """Install BUNDLE: verify, build, check against the golden outputs, measure, switch over.

    If a step fails or the process is killed, the previous version stays in use. With --host or --hosts the
    bundle is copied to the hosts and installed there with the other options. --bootstrap first creates the
    environment on the hosts; BUNDLE may then be omitted.
    """
    from slimdeploy.toolchain.deploy.root import default_root

    if rollback + (bundle is not None) != 1 and (rollback or not ssh.bootstrap):
        raise SlimdeployError("give one of BUNDLE, --rollback and --bootstrap")
    if rollback:
        refuse(OF_A_BUNDLE, "needs a bundle: --rollback does not change the previous version")
    result = _deployed(bundle, rollback, root, options, _all_hosts(hosts, hosts_file), ssh)
    return deploy_output(result, root or default_root())


def _deployed(
    bundle: Path | None,
    rollback: bool,
    root: Path | None,
    options: DeployOptions,
    hosts: list[str],
    ssh: SshOptions,
) -> DeployResult:
    from contextlib import nullcontext

    from slimdeploy.toolchain.deploy import deploy as library
    from slimdeploy.toolchain.formatting import printable
    from slimdeploy.toolchain.progress import log, working

    common = {"root": root, "hosts": hosts, "ssh": ssh, "progress": lambda line: log(printable(line))}
    with working("over SSH") if hosts else nullcontext():
        if rollback:
            return library.rollback(threads=options.threads, seconds=options.seconds, **common)
        return library.deploy(bundle, options=options, **common)


def _all_hosts(hosts: tuple[str, ...], file: Path | None) -> list[str]:
    if file is None:
        return list(hosts)
    from slimdeploy.toolchain.deploy.remote import read_hosts

    return [*hosts, *read_hosts(file)]
