"""`slimdeploy run`"""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from slimdeploy.toolchain.artifacts import write_bytes
from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import refuse
from slimdeploy.toolchain.commands.options import machine_options
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.paths import OutputFolder, OutputPath
from slimdeploy.toolchain.pipeline.stage import COMMANDS
from slimdeploy.toolchain.recipes import DEFAULT, NAMES
from slimdeploy.toolchain.runtime.torch_device import torch_device


@command(
    "run",
    help=f"""Run all stages of RECIPE, from training to the bundle and the report.

    RECIPE is a TOML file, or the name of a recipe that comes with slimdeploy: {", ".join(NAMES)}
    (default: {DEFAULT}). The stages are {", ".join(COMMANDS)}.

    Finished stages whose inputs have not changed are skipped, so the same command continues an
    interrupted run.
    """,
)
@click.argument("recipe", default=DEFAULT, metavar="[RECIPE]")
@click.option(
    "-o",
    "--output",
    type=OutputFolder(),
    help="Folder. [default: runs/<recipe>]",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Change the recipe, such as --set train.epochs=2; may be repeated.")  # fmt: skip
@click.option(
    "--from", "repeat_from", type=click.Choice(COMMANDS), metavar="STAGE",
    help=f"Repeat this stage and those after it: {', '.join(COMMANDS)}.",
)  # fmt: skip
@click.option("--copy", type=OutputPath(), help="Write the file of RECIPE there, as a template, and end.")
@machine_options
def run(
    recipe: str,
    output: Path | None,
    settings: tuple[str, ...],
    repeat_from: str | None,
    copy: Path | None,
    device: str,
    threads: int | None,
) -> Output:
    from slimdeploy.toolchain.pipeline.recipe import find_recipe, load_recipe
    from slimdeploy.toolchain.pipeline.run import run_recipe
    from slimdeploy.toolchain.pipeline.table import table_text

    file = find_recipe(recipe)
    if copy is not None:
        refuse(("output", "settings", "repeat_from"), "has no effect with `copy`")
        if copy.exists():
            raise SlimdeployError(f"{copy} exists: name another file")
        write_bytes(copy, file.read_bytes())
        return Output(
            {"recipe": str(copy)}, f"{copy}: change it, then slimdeploy run {shlex.quote(str(copy))}"
        )
    chosen = load_recipe(file, settings)
    result = run_recipe(
        chosen,
        output or Path("runs") / chosen.name,
        device=torch_device(device, threads),
        threads=threads,
        repeat_from=repeat_from,
    )
    return Output(
        {"run": str(result.folder), "stages": result.stages, "table": result.table}, table_text(result.table)
    )
