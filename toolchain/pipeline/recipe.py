"""One experiment, read from TOML and checked before anything starts."""

from __future__ import annotations

import math
import os
import sys
import types
import typing
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.artifacts import read_text
from slimdeploy.toolchain.checks import MAX_BATCH, check_finite, check_range
from slimdeploy.toolchain.data.dataset import DataOptions
from slimdeploy.toolchain.declared import Declaration, Form, declarations
from slimdeploy.toolchain.errors import SlimdeployError, nearest, shorten
from slimdeploy.toolchain.export.options import ExportOptions
from slimdeploy.toolchain.measure.timing import TimingOptions
from slimdeploy.toolchain.networks.architectures import build_graph, is_imported
from slimdeploy.toolchain.pruning.options import PruneOptions
from slimdeploy.toolchain.training.options import FINETUNE_LR, TrainOptions, inherited

RECIPES = Path(__file__).parents[1] / "recipes"
DEFAULT_RECIPE = "digits"
TRAINED = "trained"
"""As `finetune.teacher`: the run's own network before pruning."""
NONE = "none"
"""The value of an option that is to have no value: TOML has no word for that."""
_TARGETS = {"prune.ratio", "prune.params", "prune.macs", "prune.latency_ms"}


@dataclass(frozen=True)
class NetworkChoice:
    """Which network to train: a built-in architecture with its stem (None: its first), or an imported one
    (`torchvision:NAME`, `timm:NAME`, `FILE.py:FUNCTION`).
    """

    arch: str = "resnet50"
    stem: str | None = None
    arguments: tuple[str, ...] = ()
    """`name=value` for what builds an imported network."""

    def __post_init__(self) -> None:
        if not is_imported(self.arch):
            build_graph(self.arch, stem=self.stem)
        elif self.stem is not None:
            raise SlimdeployError(f"stem is for built-in architectures; {self.arch} has its own first layers")


@dataclass(frozen=True)
class BenchChoice:
    """How to measure original and final network against each other, on onnxruntime."""

    batches: tuple[int, ...] = (1, 64)
    seconds: float = TimingOptions.seconds
    ci: float = TimingOptions.ci
    launches: int = TimingOptions.launches

    def __post_init__(self) -> None:
        check_finite(self)
        if not self.batches or min(self.batches) < 1:
            raise SlimdeployError("batches must be a list of sizes from 1 on")
        check_range("batches", max(self.batches), 1, MAX_BATCH)
        if self.seconds <= 0 or self.ci <= 0:
            raise SlimdeployError("seconds and ci must be above 0")
        if self.launches < 2:
            raise SlimdeployError("launches must be at least 2")


@dataclass(frozen=True)
class Recipe:
    """All choices of a run. `compare_ratios` are pruned to and evaluated beside the pruning that
    goes on.
    """

    name: str
    data: DataOptions
    network: NetworkChoice = field(default_factory=NetworkChoice)
    train: TrainOptions = field(default_factory=TrainOptions)
    prune: PruneOptions = field(default_factory=lambda: PruneOptions(ratio=0.9))
    finetune: TrainOptions = field(default_factory=lambda: TrainOptions(lr=FINETUNE_LR))
    export: ExportOptions = field(default_factory=ExportOptions)
    bench: BenchChoice = field(default_factory=BenchChoice)
    compare_ratios: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.train.teacher == TRAINED:
            raise SlimdeployError(f"[train] teacher can't be {TRAINED!r}, the network that [train] makes")
        for ratio in self.compare_ratios:
            if not 0 <= ratio < 1:
                raise SlimdeployError(f"compare_ratios must be from 0 to below 1, not {ratio:g}")
        names = [f"{ratio:g}" for ratio in self.compare_ratios]  # of the files that they are written to
        if twice := {name for name in names if names.count(name) > 1}:
            raise SlimdeployError(f"compare_ratios holds {min(twice)} twice")
        if (table := self.prune.latency_table) and not Path(table).is_file():
            raise SlimdeployError(f"[prune] no latency table at {table}")


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path that ends in .toml, or the name of one that comes with slimdeploy."""
    if name.endswith(".toml"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise SlimdeployError(f"no recipe at {path}")
        return path
    known = sorted(path.stem for path in RECIPES.glob("*.toml"))
    if name not in known:
        raise SlimdeployError(
            f"no recipe {name!r}; there are {', '.join(known)}, or give a .toml file.{nearest(name, known)}"
        )
    return RECIPES / f"{name}.toml"


def load_recipe(path: Path, settings: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe; `settings` like `train.epochs=2` come on top of the file.

    Raises SlimdeployError that names the key for anything unknown, missing, of another type or out of range.
    """
    document = _parse(read_text(path, "recipe"), str(path))
    set_targets = _TARGETS & {setting.partition("=")[0] for setting in settings}
    if set_targets and isinstance(section := document.get("prune"), dict):
        for target in _TARGETS - set_targets:  # a target given with --set takes the place of the recipe's
            section.pop(target.removeprefix("prune."), None)
    for setting in settings:
        _apply(document, setting)
    try:
        return _build(Recipe, {"name": path.stem, **_for_its_bench(_finetuned_as_trained(document))}, "")
    except SlimdeployError as error:
        raise SlimdeployError(f"{path}: {error}") from error


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


def _finetuned_as_trained(document: dict[str, Any]) -> dict[str, Any]:
    """The recipe, its [finetune] with what it leaves open as in its [train] or, the rate, as `finetune` has
    it.
    """
    train, finetune = document.get("train", {}), document.get("finetune", {})
    if not isinstance(train, dict) or not isinstance(finetune, dict):
        return document  # refused later, by name
    kept = {name: train[name] for name in inherited(finetune) if name in train}
    return {**document, "finetune": {"lr": FINETUNE_LR, **kept, **finetune}}


def _for_its_bench(document: dict[str, Any]) -> dict[str, Any]:
    """The recipe, its INT8 for where [bench] measures (onnxruntime on a CPU), if it names no other target."""
    export = document.get("export", {})
    if not isinstance(export, dict):
        return document  # refused later, by name
    return {**document, "export": {"target": "cpu", **export}}


def _apply(document: dict[str, Any], setting: str) -> None:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise SlimdeployError(f"--set {setting}: write it as section.key=value, such as train.epochs=2")
    try:
        parsed = _parse(f"value = {value}", "")["value"]
    except SlimdeployError:
        parsed = value  # a bare word is a string
    *sections, name = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise SlimdeployError(f"--set {setting}: {section} is not a section")
    document[name] = parsed


def _build(kind: Any, values: dict[str, Any], prefix: str) -> Any:
    """A dataclass from a TOML table, each key checked against the field's type."""
    hints = typing.get_type_hints(kind)
    known, declared = [f.name for f in fields(kind)], declarations(kind)
    built = {}
    for key, value in values.items():
        if key not in known:
            raise SlimdeployError(f"unknown key {prefix + key!r}.{nearest(key, known)}")
        built[key] = _convert(hints[key], value, prefix + key, declared.get(key))
    for f in fields(kind):
        if f.name not in built and f.default is MISSING and f.default_factory is MISSING:
            raise SlimdeployError(f"{prefix + f.name} is missing")
    try:
        return kind(**built)
    except SlimdeployError as error:
        raise SlimdeployError(f"[{prefix.rstrip('.')}] {error}" if prefix else str(error)) from error


def _convert(hint: Any, value: Any, key: str, declared: Declaration | None = None) -> Any:
    """`value` as the type `hint`, or SlimdeployError naming `key`."""
    if hasattr(hint, "__dataclass_fields__"):
        if isinstance(value, dict):
            return _build(hint, value, key + ".")
        raise SlimdeployError(f"{key} must be a section, [{key}]")
    if isinstance(value, str) and "\0" in value:
        raise SlimdeployError(f"{key} must not hold a NUL character")
    if isinstance(hint, types.UnionType):
        kinds = [part for part in typing.get_args(hint) if part is not types.NoneType]
        if value == NONE and types.NoneType in typing.get_args(hint):
            return None
        if isinstance(value, str) and declared and declared.form:
            return _written(value, key, declared.form)
        hint = str if str in kinds and isinstance(value, str) else kinds[0]
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list):
            return tuple(_convert(typing.get_args(hint)[0], item, key) for item in value)
        raise SlimdeployError(f"{key} must be a list, not {shorten(repr(value))}")
    if hint is Path and isinstance(value, str):
        return Path(value).expanduser()
    if hint is str and isinstance(value, str) and declared and declared.path:
        return os.path.expanduser(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SlimdeployError(f"{key} must be a 64-bit number, not {shorten(value, 40)}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise SlimdeployError(f"{key} must be a finite number, not {value}")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", bool: "true or false"}
        raise SlimdeployError(f"{key} must be {names.get(hint, 'a string')}, not {shorten(repr(value))}")
    return value


def _written(value: str, key: str, form: Form) -> Any:
    try:
        return form.parse(value)
    except ValueError:
        raise SlimdeployError(f"{key} must be {form.expected}, not {shorten(repr(value))}") from None
