"""`slimdeploy import`"""

from __future__ import annotations

from pathlib import Path

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.formatting import count, facts_table, short
from slimdeploy.toolchain.options import IMAGE_SIDE, output_option
from slimdeploy.toolchain.paths import InputPath


@command("import")
@click.argument("name", metavar="NAME")
@click.option("--weights", type=InputPath(), metavar="FILE",
              help="State dict for it, .pth or safetensors. [default: as it is built]")  # fmt: skip
@click.option("--size", type=IMAGE_SIDE, default=224, show_default=True, help="Image side in pixels.")
@click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE",
              help="Argument for what builds it, such as width=0.5. Repeatable.")  # fmt: skip
@click.option("--classes", type=click.IntRange(min=1), help="Passed on as num_classes.")
@click.option("--class-names", type=InputPath(), metavar="FILE",
              help="Text file with one class name a line. [default: class 0, class 1, …]")  # fmt: skip
@click.option("--mean", type=click.FloatRange(0, 1), nargs=3, default=(0.485, 0.456, 0.406),
              show_default=True, metavar="R G B", help="Mean of the pixels that it knows, 0…1.")  # fmt: skip
@click.option("--std", type=click.FloatRange(0, 1, min_open=True), nargs=3, default=(0.229, 0.224, 0.225),
              show_default=True, metavar="R G B", help="Their deviation.")  # fmt: skip
@output_option
def import_(
    name: str, weights: Path | None, size: int, arguments: tuple[str, ...], classes: int | None,
    class_names: Path | None, mean: tuple[float, float, float], std: tuple[float, float, float],
    output: Path, force: bool,
) -> Output:  # fmt: skip
    """Write the network NAME as a checkpoint that every other command takes.

    NAME is torchvision:MODEL, timm:MODEL, or FILE.py:FUNCTION, a function of yours that returns a
    torch.nn.Module. It is traced with torch.export; the checkpoint holds its graph and weights, no code. The
    logits of both are compared.
    """
    from slimdeploy.toolchain.import_stage import ImportOptions, import_stage
    from slimdeploy.toolchain.named_networks import parse_arguments

    options = ImportOptions(
        name, size=size, arguments=parse_arguments(arguments), classes=classes, mean=mean, std=std
    )
    result = import_stage(options, weights=weights, class_names=class_names, output=output, force=force)
    rows = [
        ("checkpoint", str(result.checkpoint)),
        ("operators", str(result.operators)),
        ("classes", str(result.classes)),
        ("parameters", count(result.params)),
        ("MACs", short(result.macs)),
        ("largest difference of a logit", f"{result.relative_error:.1e} (relative)"),
    ]
    return Output(result.to_json(), facts_table(rows))
