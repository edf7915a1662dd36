"""`slimdeploy import`"""

from __future__ import annotations

from pathlib import Path

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.options import output_option, preprocessing_options
from slimdeploy.toolchain.formatting import count, facts_table, short
from slimdeploy.toolchain.paths import InputPath
from slimdeploy.toolchain.preprocessing_options import PreprocessingOptions


@command("import")
@click.argument("name", metavar="NAME")
@click.option("--weights", type=InputPath(), metavar="FILE",
              help="State dict to load, .pth or safetensors. [default: its own weights]")  # fmt: skip
@click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE",
              help="Argument of the network's function, e.g. width=0.5. Repeatable.")  # fmt: skip
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes, passed as num_classes.")
@click.option("--class-names", type=InputPath(), metavar="FILE",
              help="Text file with one class name per line. [default: class 0, class 1, …]")  # fmt: skip
@preprocessing_options(size="of the weights, or 224", unknown="ImageNet's")
@output_option
def import_(
    name: str, weights: Path | None, arguments: tuple[str, ...], classes: int | None,
    class_names: Path | None, images: PreprocessingOptions, output: Path, force: bool,
) -> Output:  # fmt: skip
    """Convert the network NAME to a checkpoint that every other command accepts.

    NAME is torchvision:MODEL, timm:MODEL, or FILE.py:FUNCTION, your own function that returns a
    torch.nn.Module. The network is traced with torch.export. The checkpoint contains its graph and weights,
    but no code. The logits of the original and of the converted network are compared.

    Weights published by torchvision are recognised by their SHA-256; their preprocessing and class names are
    then the default.
    """
    from slimdeploy.toolchain.models.named_networks import parse_arguments
    from slimdeploy.toolchain.stages.import_network import ImportOptions, import_stage

    options = ImportOptions(name, arguments=parse_arguments(arguments), classes=classes, images=images)
    result = import_stage(options, weights=weights, class_names=class_names, output=output, force=force)
    rows = [
        ("checkpoint", str(result.checkpoint)),
        ("operators", str(result.operators)),
        ("classes", str(result.classes)),
        ("parameters", count(result.params)),
        ("MACs", short(result.macs)),
        ("largest logit difference", f"{result.relative_error:.1e} (relative)"),
    ]
    return Output(result.to_json(), facts_table(rows))
