"""The manifest of a bundle: its files with their hashes, its models, and the description of the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slimdeploy.toolchain.artifacts import json_text
from slimdeploy.toolchain.deploy.container import MANIFEST
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.runtime.onnx_file import MAX_FILE_BYTES, PRECISIONS, TARGETS

FORMAT = 1

MAX_FILES = 64
GOLDEN_IMAGES, EVALUATION_IMAGES, EVALUATION_LABELS = (
    "golden/images.u8", "evaluation/images.u8", "evaluation/labels.i32",
)  # fmt: skip
CALIBRATION = "calibration.json"

# Lower case only and no leading dot: the same file on every file system, and never outside the folder.
_PATH = re.compile(r"[a-z0-9][a-z0-9._-]{0,40}(/[a-z0-9][a-z0-9._-]{0,40}){0,2}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle, by its path in the bundle."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Variant:
    """The network in one precision. Its ONNX file and its golden outputs are named by `id`."""

    precision: str
    target: str
    accuracy: float | None
    """Its accuracy on the evaluation images on the host."""

    @property
    def id(self) -> str:
        return self.precision if self.target == "any" else f"{self.precision}-{self.target}"

    @property
    def model(self) -> str:
        return f"models/{self.id}.onnx"

    @property
    def golden(self) -> str:
        """(golden_images, classes) float32: the host's logits."""
        return f"golden/{self.id}.f32"


def check_name(name: str) -> None:
    """Raises SlimdeployError if `name` can't be the name of a bundle."""
    if not _NAME.fullmatch(name):
        raise SlimdeployError(
            f"{name!r} is not a bundle name: use letters, digits, '.', '_' and '-', and a letter or "
            "digit first"
        )


@dataclass(frozen=True)
class BundleManifest:
    """The content of a bundle. Raises SlimdeployError for contradicting values."""

    name: str
    info: ModelInfo
    variants: tuple[Variant, ...]
    golden_images: int
    evaluation_images: int
    files: tuple[BundleFile, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.files) > MAX_FILES:
            raise SlimdeployError(f"{len(self.files)} files; maximum {MAX_FILES}")
        if not self.variants or len({variant.id for variant in self.variants}) != len(self.variants):
            raise SlimdeployError("a bundle needs at least one model, and each precision once")
        if self.golden_images < 1 or self.evaluation_images < 0:
            raise SlimdeployError("a bundle needs at least one golden image")
        self._check_paths()
        self._check_sizes()

    def file(self, path: str) -> BundleFile:
        """The entry of `path`; raises SlimdeployError if there is none."""
        for file in self.files:
            if file.path == path:
                return file
        raise SlimdeployError(f"{path} is not in the bundle")

    @property
    def content_bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def to_json(self) -> bytes:
        document = {
            "format": FORMAT,
            "name": self.name,
            "info": json.loads(self.info.to_json()),
            "variants": [asdict(variant) for variant in self.variants],
            "golden_images": self.golden_images,
            "evaluation_images": self.evaluation_images,
            "files": [asdict(file) for file in self.files],
        }
        return (json_text(document, indent=1) + "\n").encode()

    @classmethod
    def of_folder(cls, folder: Path) -> BundleManifest:
        """Read the manifest of an unpacked bundle; its files are not checked.

        Raises SlimdeployError like from_json, or if it can't be read.
        """
        path = folder / MANIFEST
        try:
            return cls.from_json(path.read_bytes(), str(path))
        except OSError as error:
            raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error

    @classmethod
    def from_json(cls, content: bytes, source: str) -> BundleManifest:
        """Read a manifest; raises SlimdeployError if it is damaged, too new, or contradicts itself."""
        try:
            document = json.loads(content)
            if document["format"] != FORMAT:
                raise SlimdeployError(f"format {document['format']!r}; this slimdeploy reads {FORMAT}")
            return cls(
                name=_string(document["name"]),
                info=ModelInfo.from_json(json.dumps(document["info"]), "info"),
                variants=tuple(_variant(entry) for entry in document["variants"]),
                golden_images=_count(document["golden_images"]),
                evaluation_images=_count(document["evaluation_images"]),
                files=tuple(_file(entry) for entry in document["files"]),
            )
        except SlimdeployError as error:
            raise SlimdeployError(f"{source}: the manifest can't be used: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise SlimdeployError(f"{source}: the manifest is damaged ({error!r})") from error

    def _check_paths(self) -> None:
        paths = [file.path for file in self.files]
        for path in paths:
            if not _PATH.fullmatch(path):
                raise SlimdeployError(f"{path!r} is not a path inside a bundle")
        if len(set(paths)) != len(paths):
            raise SlimdeployError("a path is listed twice")
        expected = set(self._expected_paths())
        for path in sorted(expected ^ (set(paths) - {CALIBRATION})):
            raise SlimdeployError(f"{path} is {'missing' if path in expected else 'not part of a bundle'}")

    def _expected_paths(self) -> Iterator[str]:
        yield GOLDEN_IMAGES
        if self.evaluation_images:
            yield from (EVALUATION_IMAGES, EVALUATION_LABELS)
        for variant in self.variants:
            yield from (variant.model, variant.golden)

    def _check_sizes(self) -> None:
        """Image and logit files contain only numbers: their sizes follow from the counts."""
        image = 3 * self.info.preprocessing.size**2
        expected = {
            GOLDEN_IMAGES: self.golden_images * image,
            EVALUATION_IMAGES: self.evaluation_images * image,
            EVALUATION_LABELS: self.evaluation_images * 4,
        }
        expected |= {v.golden: self.golden_images * self.info.graph.classes * 4 for v in self.variants}
        for file in self.files:
            if file.bytes > MAX_FILE_BYTES:
                raise SlimdeployError(f"{file.path} has {file.bytes} bytes; maximum {MAX_FILE_BYTES}")
            if file.bytes != expected.get(file.path, file.bytes):
                raise SlimdeployError(f"{file.path} has {file.bytes} bytes, not {expected[file.path]}")


def _variant(entry: Any) -> Variant:
    accuracy = entry["accuracy"]
    if accuracy is not None and not (isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1):
        raise SlimdeployError(f"{accuracy!r} is not an accuracy")
    for key, known in (("precision", PRECISIONS), ("target", TARGETS)):
        if entry[key] not in known:
            raise SlimdeployError(f"{key} {entry[key]!r}; known: {', '.join(known)}")
    return Variant(entry["precision"], entry["target"], accuracy)


def _file(entry: Any) -> BundleFile:
    sha256 = _string(entry["sha256"])
    if not _SHA256.fullmatch(sha256):
        raise SlimdeployError(f"{sha256!r} is not a SHA-256")
    return BundleFile(_string(entry["path"]), _count(entry["bytes"]), sha256)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise SlimdeployError(f"expected a text, got {value!r}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SlimdeployError(f"expected a non-negative integer, got {value!r}")
    return value
