"""`slimdeploy sweep`"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags, given, is_given
from slimdeploy.toolchain.commands.options import machine_options
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.paths import OutputFolder
from slimdeploy.toolchain.pruning.options import BUDGETS
from slimdeploy.toolchain.runtime.torch_device import torch_device
from slimdeploy.toolchain.sweep.options import SweepOptions

OVERRIDDEN = {
    "sparsity": ("train.sparsity",),
    "ratio": tuple(f"prune.{budget}" for budget in BUDGETS),
    "align": ("prune.align",),
}
"""Option -> the keys of the recipe that its values replace."""


@command("sweep")
@click.argument("recipe", metavar="RECIPE")
@click.option("--sparsity", metavar="LIST", help="Values of λ for sparse training, e.g. 0,1e-5,1e-4.")
@click.option("--ratio", metavar="LIST", help="Shares of the prunable channels to remove, e.g. 0.5,0.7,0.9.")
@click.option("--align", metavar="LIST", help="Channel multiples to which kept widths are rounded, e.g. 1,8.")
@flags(SweepOptions)
@click.option(
    "--pick", "conditions", multiple=True, metavar="CONDITION",
    help="Select the best network that meets a condition: latency<=0.8ms, accuracy>=90%, params<4M, "
    "macs<50M or speedup>3. latency@64 is at batch size 64. Separate several conditions by commas.",
)  # fmt: skip
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Worker processes on this machine.",
)
@click.option(
    "-o", "--output", type=OutputFolder(),
    help="Folder. [default: runs/<recipe>-sweep]",
)  # fmt: skip
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="Change the recipe, such as --set train.epochs=2; may be repeated.",
)  # fmt: skip
@machine_options
def sweep(
    recipe: str,
    sparsity: str | None,
    ratio: str | None,
    align: str | None,
    options: SweepOptions,
    conditions: tuple[str, ...],
    workers: int,
    output: Path | None,
    settings: tuple[str, ...],
    device: str,
    threads: int | None,
) -> Output:
    """Run RECIPE at every combination of the values given, and find the Pareto-optimal networks.

    Each λ is trained once. The same command continues an interrupted sweep. Run it on another machine with
    the same --storage to share the work.
    """
    from slimdeploy.toolchain.pipeline.recipe import find_recipe, load_recipe
    from slimdeploy.toolchain.sweep.choice import parse_conditions
    from slimdeploy.toolchain.sweep.space import read_space

    _refuse_settings(settings, {"sparsity": sparsity, "ratio": ratio, "align": align})
    for name in ("storage", "study"):
        if is_given(name) and not getattr(options, name):
            raise SlimdeployError(f"`{name}` must not be an empty text")
    if options.trials is None and "sampler" in given(SweepOptions):
        raise SlimdeployError("--sampler needs --trials N")
    chosen = load_recipe(find_recipe(recipe), settings)
    space = read_space(chosen, sparsity=sparsity, ratio=ratio, align=align)
    wanted = parse_conditions(conditions, chosen.bench.batches)

    from slimdeploy.toolchain.launch import cpu_count
    from slimdeploy.toolchain.sweep.result import table_text
    from slimdeploy.toolchain.sweep.run import sweep_stage
    from slimdeploy.toolchain.sweep.worker import Job

    folder = output or Path("runs") / f"{chosen.name}-sweep"
    if workers > 1 and threads is None:
        threads = max(1, cpu_count() // workers)
    options = replace(
        options.named(chosen.name, folder), device=torch_device(device, threads), threads=threads
    )
    done = sweep_stage(Job(chosen, space, folder, options), workers=workers, conditions=wanted)
    return Output(
        {
            "sweep": str(folder),
            **{k: done.document[k] for k in ("trials", "failed", "front", "picked", "remarks")},
        },
        table_text(done.document, folder),
        failed=done.problem,
    )


def _refuse_settings(settings: Sequence[str], lists: Mapping[str, str | None]) -> None:
    """Raises SlimdeployError for a setting that one of the `lists` would override."""
    for option, text in lists.items():
        for setting in settings:
            if text is not None and setting.partition("=")[0].strip() in OVERRIDDEN[option]:
                raise SlimdeployError(f"give `{option}` or --set {setting}, not both")
