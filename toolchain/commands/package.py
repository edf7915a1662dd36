"""`slimdeploy package`: write one file with everything that a device needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.options import data_options, output_option
from slimdeploy.toolchain.paths import InputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


@command("package")
@click.argument("models", type=InputPath(".json"), nargs=-1, required=True)
@data_options(required=False)
@click.option("--noise", is_flag=True, help="Use noise as golden images, without an evaluation set.")
@click.option("--golden", type=click.IntRange(1, 1024), default=16, show_default=True, help="Golden images.")
@click.option("--evaluation", type=click.IntRange(min=0), default=200, show_default=True,
              help="Images in the evaluation set.")  # fmt: skip
@click.option("--ranges", type=InputPath(), help="Calibration ranges (JSON) to include.")
@click.option(
    "--sign", "signing_key", type=InputPath(), metavar="KEY", help="Sign with this SSH key (ssh-keygen -Y)."
)
@output_option
def package(
    models: tuple[Path, ...],
    data: DataOptions | None,
    noise: bool,
    golden: int,
    evaluation: int,
    ranges: Path | None,
    signing_key: Path | None,
    output: Path,
    force: bool,
) -> Output:
    """Pack MODELS (ONNX files of one network, one for each precision) into a bundle for a device.

    The bundle contains the models, golden inputs with the expected outputs of each precision, a small
    evaluation set, and a manifest with the SHA-256 of every file. The same input always gives the same bytes.
    The file name should end in .slim.tar.
    """
    from slimdeploy.toolchain.deploy.package import package as pack

    result = pack(
        models,
        data=data,
        golden=golden,
        evaluation=evaluation,
        output=output,
        noise=noise,
        ranges=ranges,
        signing_key=signing_key,
        force=force,
    )
    made, signed = result.manifest, "signed" if result.signed else "not signed"
    lines = [
        f"{output}: {', '.join(v.id for v in made.variants)}; {result.bytes / 2**20:.1f} MiB, {signed}",
        f"{made.golden_images} golden and {made.evaluation_images} evaluation images: {result.images}",
        f"sha256 {result.sha256}",
    ]
    return Output(result.to_json(), "\n".join(lines))
