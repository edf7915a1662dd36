"""`slimdeploy package`: write one file with everything that a device needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slimdeploy.toolchain.cli import Output, command
from slimdeploy.toolchain.commands.flags import flags
from slimdeploy.toolchain.commands.options import data_options, output_option
from slimdeploy.toolchain.deploy.options import PackageOptions
from slimdeploy.toolchain.paths import InputPath

if TYPE_CHECKING:
    from slimdeploy.toolchain.data.dataset import DataOptions


@command("package")
@click.argument("models", type=InputPath(".json"), nargs=-1, required=True)
@data_options(required=False)
@flags(PackageOptions)
@output_option
def package(
    models: tuple[Path, ...],
    data: DataOptions | None,
    options: PackageOptions,
    output: Path,
    force: bool,
) -> Output:
    """Pack MODELS (ONNX files of one network, one for each precision) into a bundle for a device.

    The bundle contains the models, golden inputs with the expected outputs of each precision, a small
    evaluation set, and a manifest with the SHA-256 of every file. The same input always gives the same bytes.
    The file name should end in .slim.tar.
    """
    from slimdeploy.toolchain.deploy.package import package as pack

    result = pack(models, data=data, options=options, output=output, force=force)
    made, signed = result.manifest, "signed" if result.signed else "not signed"
    lines = [
        f"{output}: {', '.join(v.id for v in made.variants)}; {result.bytes / 2**20:.1f} MiB, {signed}",
        f"{made.golden_images} golden and {made.evaluation_images} evaluation images: {result.images}",
        f"sha256 {result.sha256}",
    ]
    return Output(result.to_json(), "\n".join(lines))
