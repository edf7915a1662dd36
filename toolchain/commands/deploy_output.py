"""What `slimdeploy deploy` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdeploy.toolchain.cli import Output
from slimdeploy.toolchain.formatting import printable

if TYPE_CHECKING:
    from rich.table import Table

    from slimdeploy.toolchain.deploy.remote import HostResult
    from slimdeploy.toolchain.deploy.running import ServerState


def said(server: ServerState) -> str:
    return f"{server.url} serves {server.version}" + (f": {server.error}" if server.error else " now")


def remote_output(results: list[HostResult]) -> Output:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    if any(result.environment for result in results):
        parts += [_environments(results), *(Text(remark) for remark in _remarks(results))]
    if any(result.deployment for result in results) or not parts:
        parts.append(_deployments(results))
    errors = [Text(f"{result.host}: {result.error}") for result in results if result.error]
    failed = f"{len(errors)} of {len(results)} hosts failed" if errors else None
    return Output({"hosts": [result.to_json() for result in results]}, Group(*parts, *errors), failed)


def _environments(results: list[HostResult]) -> Table:
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


def _remarks(results: list[HostResult]) -> Iterator[str]:
    """Problems that doctor found on the host, each with the command that fixes it."""
    for result in results:
        for each in result.environment["doctor"]["findings"] if result.environment else ():
            if each["status"] not in ("ok", "note"):
                mend = f": {each['mend']}" if each.get("mend") else ""
                yield printable(f"{result.host}: {each['name']}, {each['detail']}{mend}")


def _deployments(results: list[HostResult]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("host", "version", "runs", "one image", "golden", "seconds")
    for result in results:
        made = result.deployment
        if made is None:
            table.add_row(escape(result.host), "[red]failed[/]", "", "", "", f"{result.seconds:.1f}")
            continue
        latency = f"~{made['latency_ms']['p50']:.3g} ms" if "latency_ms" in made else ""
        runs = f"{made['variant']} on {made['backend']}" if "variant" in made else ""
        golden = f"{made['golden']['max_error']:.2g}"
        texts = [escape(printable(text)) for text in (result.host, made["version"], runs)]
        table.add_row(*texts, latency, golden, f"{result.seconds:.1f}")
    return table


def installed_table(made: dict[str, Any], root: Path, servers: list[ServerState]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    golden, accuracy, latency = made["golden"], made["accuracy"], made["latency_ms"]
    table = Table("deployed", made["version"], title=f"{root}")
    table.add_row("model", f"{made['variant']} on {made['backend']}")
    table.add_row("golden outputs", f"largest difference {golden['max_error']:.2g} "
                  f"(allowed {golden['tolerance']:g}), "
                  f"top-1 {golden['top1_agreement']:.0%} of {golden['images']}")  # fmt: skip
    if accuracy["images"]:
        table.add_row("accuracy", f"{accuracy['device']:.2%} here, {accuracy['host']:.2%} on the host, "
                      f"{accuracy['images']} images")  # fmt: skip
    table.add_row("one image", f"~{latency['p50']:.3g} ms (p50), ~{latency['p99']:.3g} ms (p99), "
                  f"{latency['runs']} runs in one process")  # fmt: skip
    table.add_row("CPU", escape(made["cpu"]))
    if len(timed := made["candidates_ms"]) > 1:
        table.add_row("fastest of", ", ".join(f"{name} ~{ms:.3g} ms" for name, ms in timed.items()))
    if made["signer"]:
        table.add_row("signed by", made["signer"])
    for server in servers:
        table.add_row("server", escape(said(server)))
    for note in made["notes"]:
        table.add_row("note", escape(note))
    return table
