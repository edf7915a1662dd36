"""The description of a network, contained in every file from checkpoint to bundle. No torch here."""

from __future__ import annotations

import contextlib
import functools
import platform
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, TypeVar

from slimdeploy import __version__
from slimdeploy.toolchain.artifacts import json_text, parse_json
from slimdeploy.toolchain.errors import SlimdeployError, shorten
from slimdeploy.toolchain.networks.architectures import read_network
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.preprocessing import CHANNELS, Preprocessing

T = TypeVar("T")

FORMAT, READABLE = 2, (1, 2)
"""Version of the JSON document in checkpoints and ONNX files, and the versions that can be read. Format 1
contains a ResNet's channel configuration, format 2 the whole graph.
"""

DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings"),
}
"""Import name -> packages that contain it, where the package has another name."""

METADATA_KEY = "slimdeploy"
"""Key of that document in an ONNX file (metadata_props)."""


def unknown_class_names(classes: int) -> tuple[str, ...]:
    """The class names of a network whose own are not known."""
    return tuple(f"class {i}" for i in range(classes))


def class_name(text: str) -> str:
    """A class name in normalised Unicode: file systems and editors store accents in two forms."""
    return unicodedata.normalize("NFC", text).strip()


def check_class_names(data: str, names: Sequence[str], model: str, own: Sequence[str]) -> None:
    """Raises SlimdeployError if the class names of `data` aren't those of `model`."""
    if [class_name(name) for name in names] == [class_name(name) for name in own]:
        return
    unnamed = tuple(own) == unknown_class_names(len(names))
    raise SlimdeployError(
        f"{data} has other classes ({_few(names)}) than {model} ({_few(own)})"
        + (": the network has no class names; import it with class names" if unnamed else "")
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", … {len(names)} in all" if len(names) > 3 else "")


@dataclass(frozen=True)
class ModelInfo:
    """The network, its preprocessing, its class names, its accuracy and its provenance."""

    graph: Graph
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    """Latest results, e.g. `{"accuracy": {"val": …, "test": …}}`."""
    provenance: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """One entry per stage, oldest first: command, options, parent's SHA-256, seed, versions."""

    def __post_init__(self) -> None:
        if len(self.class_names) != self.graph.classes:
            raise SlimdeployError(f"{self.graph.classes} classes, but {len(self.class_names)} class names")
        own, given = self.graph.image_channels, self.preprocessing.image_channels
        if own != given:
            fitting = " or ".join(name for name, count in CHANNELS.items() if count == own)
            raise SlimdeployError(
                f"the network takes images with {own} channel{'s'[: own - 1]}, but the preprocessing makes "
                f"{given}: `channels` must be {fitting}"
            )

    def after(
        self, stage: str, *, graph: Graph | None = None, metrics: dict[str, Any], **facts: Any
    ) -> ModelInfo:
        """The description after one more stage, with new metrics and one more provenance entry."""
        entry = {"stage": stage, "versions": versions(), **facts}
        return replace(self, graph=graph or self.graph, metrics=metrics, provenance=(*self.provenance, entry))

    def to_json(self) -> str:
        return json_text(
            {
                "format": FORMAT,
                "network": self.graph.to_json(),
                "preprocessing": self.preprocessing.to_json(),
                "class_names": self.class_names,
                "metrics": self.metrics,
                "provenance": self.provenance,
            }
        )

    @classmethod
    def from_json(cls, text: str, source: str) -> ModelInfo:
        """Read the document from `source`; raises SlimdeployError if it is damaged or too new."""
        try:
            document = parse_json(text, "damaged description of the network")
            if document["format"] not in READABLE:
                raise SlimdeployError(f"format {document['format']!r}; this slimdeploy reads up to {FORMAT}")
            return cls(
                graph=read_network(document["network"]),
                preprocessing=Preprocessing.from_json(document["preprocessing"]),
                class_names=tuple(_kind(str, name) for name in _kind(list, document["class_names"])),
                metrics=_kind(dict, document["metrics"]),
                provenance=tuple(_kind(dict, entry) for entry in _kind(list, document["provenance"])),
            )
        except SlimdeployError as error:
            raise SlimdeployError(f"{source}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise SlimdeployError(
                f"{source}: damaged description of the network ({shorten(repr(error))})"
            ) from error


def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that affect results.

    The installed versions, not those of imported modules: artifacts contain them, and the same work must give
    the same bytes whatever was imported before.
    """
    return dict(_installed())


@functools.cache
def _installed() -> dict[str, str]:
    found = {"python": platform.python_version(), "slimdeploy": __version__}
    for name in ("numpy", "torch", "onnx", "onnxruntime", "tensorrt"):
        for distribution in (name, *DISTRIBUTIONS.get(name, ())):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(distribution)
                break
    return found


def _kind(kind: type[T], value: Any) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} expected, not {shorten(repr(value), 40)}")
    return value
