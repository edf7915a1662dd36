"""The stage `import`: convert a network from elsewhere to a checkpoint."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.file_kinds import CHECKPOINT
from slimdeploy.toolchain.models.checkpoint import save_checkpoint
from slimdeploy.toolchain.models.model_info import ModelInfo, class_name, unknown_class_names
from slimdeploy.toolchain.models.named_networks import imported_network
from slimdeploy.toolchain.networks.architectures import ARCHITECTURES, is_imported, source_file
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.paths import InputPath, OutputPath, check_apart
from slimdeploy.toolchain.preprocessing import default_preprocessing
from slimdeploy.toolchain.preprocessing_options import PreprocessingOptions
from slimdeploy.toolchain.progress import log
from slimdeploy.toolchain.published_weights import PublishedWeights, published_weights, tell_of_transform
from slimdeploy.toolchain.training.pretrained import read_tensors

DEFAULT_SIZE = 224
"""Default size of the images of networks without known preprocessing."""


@dataclass(frozen=True)
class ImportOptions:
    """What to import, and its preprocessing. Options that are not given are those of `weights` if torchvision
    published them, else those of `default_preprocessing`.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classes: int | None = None
    images: PreprocessingOptions = field(default_factory=PreprocessingOptions)


@dataclass(frozen=True)
class ImportResult:
    """The written checkpoint. `relative_error` is the largest logit difference to the original network."""

    checkpoint: Path
    sha256: str
    operators: int
    classes: int
    params: int
    macs: int
    relative_error: float

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "checkpoint": str(self.checkpoint)}


def import_stage(
    options: ImportOptions,
    *,
    output: Path,
    weights: Path | None = None,
    class_names: Path | None = None,
    force: bool = False,
) -> ImportResult:
    """Import the network that `options` name, with the state dict in `weights`, and write it to `output`.

    Raises SlimdeployError for an existing output, weights that don't fit, and unsupported networks.
    """
    check_apart([("`name`", source_file(options.name), InputPath()), ("`output`", output, OutputPath())])
    artifacts.check_output(output, force=force, kind=CHECKPOINT)
    if not is_imported(options.name):
        name = options.name
        what = (
            f"{name} is built in: slimdeploy train --arch {name} makes it"
            if name in ARCHITECTURES
            else f"{name!r} is no network (a file of weights goes to --weights)"
        )
        raise SlimdeployError(f"{what}; import takes torchvision:NAME, timm:NAME or FILE.py:FUNCTION")
    tensors = read_tensors(weights) if weights else None
    published = _published(options.name, weights) if weights else None
    if weights and not published:
        tell_of_transform(options.name, options.arguments)
    geometry = options.images.geometry or (published.preprocessing.geometry if published else None)
    size = geometry.size if geometry else DEFAULT_SIZE
    found = imported_network(
        options.name,
        size=size,
        classes=options.classes,
        arguments={**(published.arguments if published else {}), **options.arguments},
        tensors=tensors,
        image_channels=options.images.image_channels,
    )
    graph = found.network.graph
    images = options.images.for_network(options.name, graph.image_channels)
    default = published.preprocessing if published else default_preprocessing(size, graph.image_channels)
    preprocessing = images.applied_to(default)
    log(f"preprocessing: {preprocessing}, {_origin(images, published)}")
    names = _class_names(class_names, graph.classes, published)
    info = ModelInfo(graph, preprocessing, names).after(
        "import",
        metrics={},
        name=options.name,
        arguments=dict(options.arguments),
        weights=published.name if published else None,
    )
    cost = network_cost(graph, preprocessing.size)
    return ImportResult(
        checkpoint=output,
        sha256=save_checkpoint(output, found.network, info),
        operators=len(graph.nodes),
        classes=graph.classes,
        params=cost.params,
        macs=cost.macs,
        relative_error=found.relative_error,
    )


def _published(name: str, weights: Path) -> PublishedWeights | None:
    source, _, model = name.partition(":")
    return published_weights(model, artifacts.sha256_file(weights)) if source == "torchvision" else None


def _origin(images: PreprocessingOptions, published: PublishedWeights | None) -> str:
    """Where the preprocessing comes from."""
    if published:
        return f"of {published}, unless an option overrides it"
    if images.geometry and all(images.statistics):
        return "as given"
    return "the default unless an option overrides it"


def _class_names(path: Path | None, classes: int, published: PublishedWeights | None) -> tuple[str, ...]:
    if path is None and published and len(published.class_names) == classes:
        return published.class_names
    if path is None:
        return unknown_class_names(classes)
    text = artifacts.read_text(path, "list of class names")
    names = tuple(class_name(line) for line in text.splitlines() if line.strip())
    if len(names) != classes:
        raise SlimdeployError(f"{path} has {len(names)} class names, the network {classes} classes")
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1]:
        log(
            f"warning: {path} has several classes named {', '.join(repeated)}: data for this network needs "
            "different names"
        )
    return names
