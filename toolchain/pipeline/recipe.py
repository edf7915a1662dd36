"""The recipe of a run, read from TOML and validated before anything starts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.artifacts import missing, read_text
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.deploy.options import PackageOptions
from slimdeploy.toolchain.errors import SlimdeployError, nearest, shorten
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.measure.options import MeasureOptions
from slimdeploy.toolchain.pipeline.choices import (
    CalibrateChoice,
    NetworkChoice,
    ReportChoice,
)
from slimdeploy.toolchain.pipeline.toml_options import build
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.recipes import NAMES, RECIPES
from slimdeploy.toolchain.training.options import FINETUNE_LR, WEIGHTS_LR, TrainOptions, inherited

TRAINED = "trained"
"""Value of `finetune.teacher`: the run's network before pruning."""
_TARGETS = {"prune.ratio", "prune.params", "prune.macs", "prune.latency_ms"}


@dataclass(frozen=True)
class Recipe:
    """All options of a run. `compare_ratios` are additional prunings that are only evaluated. A stage whose
    section is None is skipped.
    """

    name: str
    data: DataOptions
    network: NetworkChoice = field(default_factory=NetworkChoice)
    train: TrainOptions = field(default_factory=TrainOptions)
    prune: PruneOptions = field(default_factory=lambda: PruneOptions(ratio=0.9))
    finetune: TrainOptions = field(default_factory=lambda: TrainOptions(lr=FINETUNE_LR))
    export: ExportOptions = field(default_factory=ExportOptions)
    calibrate: CalibrateChoice | None = None
    bench: MeasureOptions = field(default_factory=MeasureOptions)
    package: PackageOptions | None = None
    report: ReportChoice | None = None
    compare_ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.train.teacher == TRAINED:
            raise SlimdeployError(f"[train] teacher can't be {TRAINED!r}, the network trained by [train]")
        for ratio in self.compare_ratios:
            if not 0 <= ratio < 1:
                raise SlimdeployError(f"compare_ratios must be from 0 to below 1, not {ratio:g}")
        names = [f"{ratio:g}" for ratio in self.compare_ratios]  # used as file names
        if twice := {name for name in names if names.count(name) > 1}:
            raise SlimdeployError(f"compare_ratios holds {min(twice)} twice")
        if self.calibrate and self.export.precision != "fp32":
            raise SlimdeployError(
                f"[export] precision {self.export.precision}: [calibrate] reads an fp32 file: remove one of "
                "both"
            )
        if self.package and (key := self.package.signing_key) and not Path(key).is_file():
            raise SlimdeployError(f"[package] {missing(key, 'key file')}")
        if (table := self.prune.latency_table) and not Path(table).is_file():
            raise SlimdeployError(f"[prune] {missing(table, 'latency table')}")


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path that ends in .toml, or the name of a recipe included in slimdeploy."""
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise missing(path, "recipe")
        return path
    if name not in NAMES:
        raise SlimdeployError(
            f"no recipe {name!r}; there are {', '.join(NAMES)}, or give a .toml file.{nearest(name, NAMES)}"
        )
    return RECIPES / f"{name}.toml"


def load_recipe(path: Path, settings: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe; `settings` like `train.epochs=2` override the file.

    Raises SlimdeployError with the key for anything unknown, missing, of the wrong type or out of range.
    """
    document = _parse(read_text(path, "recipe"), str(path))
    set_targets = _TARGETS & {setting.partition("=")[0] for setting in settings}
    if set_targets and isinstance(section := document.get("prune"), dict):
        for target in _TARGETS - set_targets:  # a target given with --set replaces that of the recipe
            section.pop(target.removeprefix("prune."), None)
        if "prune.latency_ms" not in set_targets:
            section.pop("latency_table", None)
    for setting in settings:
        _apply(document, setting)
    try:
        for default in (_gently, _finetuned_as_trained, _for_its_bench, _at_original_widths):
            document = default(document)
        return build(Recipe, {"name": path.stem, **document}, "")
    except SlimdeployError as error:
        changed = f" with `settings` {' '.join(settings)}" if settings else ""
        raise SlimdeployError(f"{path}{changed}: {error}") from error


def _parse(text: str, source: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise SlimdeployError(f"{source} is not TOML: nested too deeply") from None
    except ValueError as error:
        raise SlimdeployError(f"{source} is not TOML: {shorten(error)}") from error


def _gently(document: dict[str, Any]) -> dict[str, Any]:
    """Default learning rate of training that starts from weights, as in `train`."""
    network, train = document.get("network", {}), document.get("train", {})
    if not isinstance(network, dict) or not isinstance(train, dict) or "weights" not in network:
        return document
    return {**document, "train": {"lr": WEIGHTS_LR, **train}}


def _finetuned_as_trained(document: dict[str, Any]) -> dict[str, Any]:
    """Defaults of [finetune]: the options of [train], and the learning rate of `finetune`."""
    train, finetune = document.get("train", {}), document.get("finetune", {})
    if not isinstance(train, dict) or not isinstance(finetune, dict):
        return document  # refused later, with its name
    kept = {name: train[name] for name in inherited(finetune) if name in train}
    return {**document, "finetune": {"lr": FINETUNE_LR, **kept, **finetune}}


def _at_original_widths(document: dict[str, Any]) -> dict[str, Any]:
    """Default of [train]: channels are not removed during training, so that the pruned network is compared
    with the full one.
    """
    train = document.get("train", {})
    if not isinstance(train, dict):
        return document  # refused later, with its name
    return {**document, "train": {"shrink": False, **train}}


def _for_its_bench(document: dict[str, Any]) -> dict[str, Any]:
    """Default target of [calibrate]: the runtime of [bench], onnxruntime on a CPU."""
    export = document.get("export", {})
    if not isinstance(export, dict):
        return document  # refused later, with its name
    return {**document, "export": {"target": "cpu", **export}}


def _apply(document: dict[str, Any], setting: str) -> None:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise SlimdeployError(f"`settings` {setting}: write it as section.key=value, e.g. train.epochs=2")
    try:
        parsed = _parse(f"value = {value}", "")["value"]
    except SlimdeployError:
        parsed = value  # an unquoted word is a string
    *sections, name = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise SlimdeployError(f"`settings` {setting}: {section} is not a section")
    document[name] = parsed
