"""`slimdeploy.package`: pack ONNX files of one network into a bundle for a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.deploy.bundle import ENDING, write_bundle
from slimdeploy.toolchain.deploy.bundle_manifest import BundleManifest, check_name
from slimdeploy.toolchain.deploy.options import PackageOptions
from slimdeploy.toolchain.deploy.samples import images_for, noise_images
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.file_kinds import BUNDLE
from slimdeploy.toolchain.library.keywords import takes
from slimdeploy.toolchain.paths import InputPath, OutputPath, check_apart


@dataclass(frozen=True)
class PackageResult:
    """The written bundle; `images` tells where its golden and evaluation images come from."""

    bundle: Path
    sha256: str
    bytes: int
    manifest: BundleManifest
    images: str
    signed: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.bundle),
            "sha256": self.sha256,
            "bytes": self.bytes,
            "name": self.manifest.name,
            "models": [
                {"precision": v.precision, "target": v.target, "accuracy": v.accuracy}
                for v in self.manifest.variants
            ],
            "golden_images": self.manifest.golden_images,
            "evaluation_images": self.manifest.evaluation_images,
            "signed": self.signed,
        }


@takes(PackageOptions)
def package(
    models: Sequence[str | Path],
    *,
    output: str | Path,
    data: str | DataOptions | None = None,
    force: bool = False,
    options: PackageOptions,
) -> PackageResult:
    """Pack ONNX files of one network into a bundle for a device: the models, images to check them on the
    device, and a manifest with the hash of every file.

    Args:
        models: One file for each precision.
        output: The bundle to write; its name should end in `.slim.tar`.
        data: Source of the golden and evaluation images, as for `--data`. Default: the data that the network
            was trained on; if that is unknown, noise.
        force: Replace `output` if it exists.

    Raises:
        SlimdeployError: An existing output, models of different networks, a key that can't sign, or `data`
            with `noise`.
    """
    if not models:
        raise SlimdeployError("`models` names no model")
    files, output = [Path(model) for model in models], Path(output)
    ranges, key = (Path(path) if path else None for path in (options.ranges, options.signing_key))
    check_apart(
        [
            *(("`models`", model, InputPath(".json")) for model in files),
            ("`ranges`", ranges, InputPath()),
            ("`signing_key`", key, InputPath()),
            ("`output`", output, OutputPath()),
        ]
    )
    artifacts.check_output(output, force=force, kind=BUNDLE)
    try:
        check_name(output.name.removesuffix(ENDING))
    except SlimdeployError as error:
        raise SlimdeployError(f"`output` {output}: {error}") from error
    if options.noise and data is not None:
        raise SlimdeployError("give `noise` or `data`, not both")
    if options.noise and options.evaluation != PackageOptions.evaluation:
        raise SlimdeployError("give `noise` or `evaluation`, not both: noise has no labels")
    data = DataOptions(data) if isinstance(data, str) else data
    images = (
        noise_images(files[0], options.golden)
        if options.noise
        else images_for(files[0], data, golden=options.golden, evaluation=options.evaluation)
    )
    manifest = write_bundle(output, files, images, calibration=ranges, signing_key=key)
    return PackageResult(
        bundle=output,
        sha256=artifacts.sha256_file(output),
        bytes=output.stat().st_size,
        manifest=manifest,
        images=images.source,
        signed=key is not None,
    )
