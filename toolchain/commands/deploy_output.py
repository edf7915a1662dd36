"""What `slimdeploy deploy` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy.toolchain.cli import Output, name_flags
from slimdeploy.toolchain.formatting import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from slimdeploy.toolchain.deploy.deploy import DeployResult
    from slimdeploy.toolchain.deploy.device import Deployment
    from slimdeploy.toolchain.deploy.remote import HostResult
    from slimdeploy.toolchain.deploy.running import ServerState


def deploy_output(result: DeployResult, root: Path) -> Output:
    """Of a deployment or a rollback, here or on other devices."""
    for host in result.hosts:
        if host.problem:
            name_flags(host.problem)
    return Output(result.to_json(), _text(result, root), result.failed)


def _text(result: DeployResult, root: Path) -> RenderableType:
    from slimdeploy.toolchain.deploy.device import Deployment, Restored

    match result.here:
        case Deployment() as made:
            return _installed(made, root, result.servers)
        case Restored(version, golden):
            back = f"back to {version}: golden outputs differ by {golden.max_error:.2g}"
            return "\n".join([back, *map(str, result.servers)])
        case None:
            return _everywhere(result.hosts)


def _everywhere(results: Sequence[HostResult]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    if any(result.environment for result in results):
        parts += [_environments(results), *(Text(remark) for remark in _remarks(results))]
    if any(result.deployment for result in results) or not parts:
        parts.append(_deployments(results))
    errors = [Text(f"{result.host}: {result.error}") for result in results if result.error]
    return Group(*parts, *errors)


def _environments(results: Sequence[HostResult]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("host", "environment", "", "Python", "CPU", "slimdeploy with")
    for result in results:
        if made := result.environment:
            done, extras = "made" if made["made"] else "was there", ", ".join(made["extras"])
            cells = (
                result.host,
                made["path"],
                done,
                made["python"],
                made["architecture"],
                extras,
            )
            table.add_row(*(escape(printable(cell)) for cell in cells))
    return table


def _remarks(results: Sequence[HostResult]) -> Iterator[str]:
    """Problems that doctor found on the host, each with the command that fixes it."""
    for result in results:
        for each in result.environment["doctor"]["findings"] if result.environment else ():
            if each["status"] not in ("ok", "note"):
                mend = f": {each['mend']}" if each.get("mend") else ""
                yield printable(f"{result.host}: {each['name']}, {each['detail']}{mend}")


def _deployments(results: Sequence[HostResult]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("host", "version", "runs", "one image", "golden", "seconds")
    for result in results:
        made = result.deployment
        if made is None:
            table.add_row(escape(result.host), "[red]failed[/]", "", "", "", f"{result.seconds:.1f}")
            continue
        latency = "" if made.p50_ms is None else f"~{made.p50_ms:.3g} ms"
        runs = f"{made.variant} on {made.backend}" if made.variant else ""
        texts = [escape(printable(text)) for text in (result.host, made.version, runs)]
        table.add_row(*texts, latency, f"{made.max_error:.2g}", f"{result.seconds:.1f}")
    return table


def _installed(made: Deployment, root: Path, servers: Sequence[ServerState]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    golden, accuracy, latency = made.golden, made.accuracy, made.latency_ms
    table = Table("deployed", made.version, title=f"{root}")
    table.add_row("model", f"{made.variant} on {made.backend}")
    table.add_row("golden outputs", f"largest difference {golden.max_error:.2g} "
                  f"(allowed {golden.tolerance:g}), "
                  f"top-1 {golden.top1_agreement:.0%} of {golden.images}")  # fmt: skip
    if accuracy.device is not None:
        on_host = "" if accuracy.host is None else f"{accuracy.host:.2%} on the host, "
        table.add_row("accuracy", f"{accuracy.device:.2%} here, {on_host}{accuracy.images} images")
    table.add_row("one image", f"~{latency.p50:.3g} ms (p50), ~{latency.p99:.3g} ms (p99), "
                  f"{latency.runs} runs in one process")  # fmt: skip
    table.add_row("CPU", escape(made.cpu))
    if len(timed := made.candidates_ms) > 1:
        table.add_row("fastest of", ", ".join(f"{name} ~{ms:.3g} ms" for name, ms in timed.items()))
    if made.signer:
        table.add_row("signed by", made.signer)
    for server in servers:
        table.add_row("server", escape(str(server)))
    for note in made.notes:
        table.add_row("note", escape(note))
    return table
