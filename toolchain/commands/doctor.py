"""`slimdeploy doctor`"""

from __future__ import annotations

import click

from slimdeploy.toolchain.cli import Output, command


@command("doctor")
@click.option("--role", type=click.Choice(["host", "device"]),
              help="Role of this machine. [default: device on a Jetson or without torch]")  # fmt: skip
def doctor(role: str | None) -> Output:
    """Check what this machine supports, and show the command that fixes each problem.

    The exit code is 1 if the main task cannot run: training and export on a host, inference on a device.
    """
    from rich.markup import escape
    from rich.table import Table

    from slimdeploy.toolchain.deploy.doctor import examine, report, works
    from slimdeploy.toolchain.deploy.findings import MISSING
    from slimdeploy.toolchain.deploy.machine import this_machine

    machine = this_machine(role)
    findings = examine(machine)
    table = Table("", "", "found", "fix", title=f"this {machine.role}", title_justify="left")
    marks = {"ok": "[green]✓[/]", "note": "·", "warning": "[yellow]![/]", "missing": "[red]✗[/]"}
    for each in findings:
        table.add_row(marks[each.status], each.name, escape(each.detail), escape(each.mend or ""))
    missing = ", ".join(each.name for each in findings if each.status == MISSING)
    failed = None if works(findings) else f"this {machine.role} can't do its main job: {missing}"
    return Output(report(machine, findings), table, failed)
