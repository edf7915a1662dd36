"""`slimdeploy run`"""

from __future__ import annotations

from pathlib import Path

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.options import machine_options
from slimdeploy.toolchain.paths import OutputFolder
from slimdeploy.toolchain.pipeline.stage import COMMANDS
from slimdeploy.toolchain.runtime.torch_device import torch_device


@command("run")
@click.argument("recipe", default="digits", metavar="[RECIPE]")
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
@machine_options
def run(
    recipe: str,
    output: Path | None,
    settings: tuple[str, ...],
    repeat_from: str | None,
    device: str,
    threads: int | None,
) -> Output:
    """Run all stages of RECIPE, from training to the bundle and the report.

    RECIPE is a TOML file, or the name of one that comes with slimdeploy: digits (the default),
    cifar10-resnet50, cifar10-resnet18, cifar10-10k or folder. The stages are train (sparse), prune, finetune,
    export, calibrate, bench, package and report.

    Finished stages whose inputs have not changed are skipped, so the same command continues an interrupted
    run.
    """
    from slimdeploy.toolchain.pipeline.recipe import find_recipe, load_recipe
    from slimdeploy.toolchain.pipeline.run import run_recipe
    from slimdeploy.toolchain.pipeline.table import table_text

    chosen = load_recipe(find_recipe(recipe), settings)
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
