"""The stage `import`: a network made elsewhere in, a checkpoint out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.checkpoint import save_checkpoint
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.model_info import ModelInfo, Preprocessing
from slimdeploy.toolchain.named_networks import imported_network
from slimdeploy.toolchain.networks.architectures import is_imported
from slimdeploy.toolchain.networks.cost import network_cost
from slimdeploy.toolchain.training.pretrained import read_tensors

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImportOptions:
    """What to import, and what its images are like: `mean` and `std` of pixels in 0…1."""

    name: str
    size: int = 224
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classes: int | None = None
    mean: Triple = (0.485, 0.456, 0.406)
    std: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImportResult:
    """The checkpoint written. `relative_error` is the largest difference of a logit to the original's."""

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

    Raises SlimdeployError for an output that exists, weights that don't fit, and what importing refuses.
    """
    artifacts.check_output(output, force=force)
    if not is_imported(options.name):
        raise SlimdeployError(
            f"{options.name} is built in: slimdeploy train --arch {options.name} makes it; import takes "
            "torchvision:NAME, timm:NAME or FILE.py:FUNCTION"
        )
    found = imported_network(
        options.name,
        size=options.size,
        classes=options.classes,
        arguments=options.arguments,
        tensors=read_tensors(weights) if weights else None,
    )
    graph = found.network.graph
    info = ModelInfo(
        graph,
        Preprocessing(options.size, options.mean, options.std),
        _class_names(class_names, graph.classes),
    ).after("import", metrics={}, name=options.name, arguments=dict(options.arguments))
    cost = network_cost(graph, options.size)
    return ImportResult(
        checkpoint=output,
        sha256=save_checkpoint(output, found.network, info),
        operators=len(graph.nodes),
        classes=graph.classes,
        params=cost.params,
        macs=cost.macs,
        relative_error=found.relative_error,
    )


def _class_names(path: Path | None, classes: int) -> tuple[str, ...]:
    if path is None:
        return tuple(f"class {i}" for i in range(classes))
    try:
        names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SlimdeployError(f"{path}: no class names can be read ({error})") from error
    if len(names) != classes:
        raise SlimdeployError(f"{path} has {len(names)} class names, the network {classes} classes")
    return names
