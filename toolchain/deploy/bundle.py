"""Write bundles, and read untrusted bundles: every byte is verified before use."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from slimdeploy.calibrate.ranges import read_ranges
from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.deploy import bundle_manifest as manifest
from slimdeploy.toolchain.deploy import container, signature
from slimdeploy.toolchain.deploy.bundle_manifest import BundleFile, BundleManifest, Variant
from slimdeploy.toolchain.deploy.golden import compute_logits
from slimdeploy.toolchain.deploy.samples import Images
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.file_kinds import BUNDLE, refuse_other_kind
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.models.stated_accuracy import check_stated_accuracy
from slimdeploy.toolchain.runtime.onnx_file import carried_info, read_onnx
from slimdeploy.toolchain.runtime.session import SessionOptions, open_session

ENDING = ".slim.tar"
_BATCH = 8


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was read. `content` is the signed part: the bytes of the manifest."""

    path: Path
    manifest: BundleManifest
    content: bytes
    signature: bytes | None


def write_bundle(
    path: Path,
    models: Sequence[Path],
    images: Images,
    *,
    calibration: Path | None = None,
    signing_key: Path | None = None,
) -> BundleManifest:
    """Pack ONNX files of one network, one per precision, with everything that a device needs to run and check
    them.

    The same input gives the same bytes. Raises SlimdeployError for models not written by slimdeploy, for
    models of different networks, and for images that don't fit.
    """
    contents: dict[str, bytes] = {}
    variants, infos = [], []
    for model in models:
        facts = read_onnx(model)
        info = carried_info(model, facts)
        _check_images(model, info, images)
        variant = Variant(facts.metadata.get("precision", "fp32"), facts.metadata.get("target", "any"), None)
        logits, accuracy = _run_on_host(model, info, images)
        if accuracy is not None and images.of_training:
            check_stated_accuracy(model, info, accuracy, len(images.labels))
        variant = replace(variant, accuracy=accuracy)
        if variant.model in contents:
            raise SlimdeployError(f"{model}: the bundle already has a model in {variant.id}")
        contents[variant.model] = model.read_bytes()
        contents[variant.golden] = logits.astype("<f4").tobytes()
        variants.append(variant)
        infos.append(info)
    _check_one_network(models, infos)
    contents[manifest.GOLDEN_IMAGES] = images.golden.tobytes()
    if len(images.evaluation):
        contents[manifest.EVALUATION_IMAGES] = images.evaluation.tobytes()
        contents[manifest.EVALUATION_LABELS] = images.labels.astype("<i4").tobytes()
    if calibration:
        read_ranges(calibration)
        contents[manifest.CALIBRATION] = calibration.read_bytes()
    files = tuple(
        BundleFile(name, len(content), hashlib.sha256(content).hexdigest())
        for name, content in sorted(contents.items())
    )
    parents = {file.path: file.sha256 for file in files if file.path.endswith(".onnx")}
    info = infos[0].after("package", metrics=infos[0].metrics, parents=parents, images=images.source)
    made = BundleManifest(
        name=path.name.removesuffix(ENDING), info=info, variants=tuple(variants),
        golden_images=len(images.golden), evaluation_images=len(images.evaluation), files=files,
    )  # fmt: skip
    head = made.to_json()
    with artifacts.atomic_file(path) as file:
        container.write_member(file, container.MANIFEST, head)
        if signing_key:
            container.write_member(file, container.SIGNATURE, signature.sign(head, signing_key))
        for entry in files:
            container.write_member(file, entry.path, contents[entry.path])
        file.write(container.END)
    return made


def read_bundle(path: Path) -> Bundle:
    """Read and check the manifest of a bundle; its files are hashed later, by `unpack`."""
    with _reader(path) as reader:
        return _read_head(reader, path)


def unpack(bundle: Bundle, folder: Path) -> None:
    """Write the files of the bundle into the new folder `folder`, and nothing anywhere else.

    Raises SlimdeployError at the first byte that differs from the manifest, or if an ONNX file isn't the
    network of the manifest or uses external data; files written before the error are left there.
    """
    _make_folder(folder)
    with _reader(bundle.path) as reader:
        if _read_head(reader, bundle.path) != bundle:
            raise SlimdeployError(f"{bundle.path} changed while it was being read")
        for entry in bundle.manifest.files:
            target = folder / entry.path
            if not target.parent.is_dir():
                _make_folder(target.parent)
            _write_new(target, reader.member(entry.path, entry.bytes, entry.sha256))
        reader.end()
    _write_new(folder / container.MANIFEST, [bundle.content])
    for variant in bundle.manifest.variants:
        model = folder / variant.model
        facts = read_onnx(model)
        _check_one_network([bundle.path, model], [bundle.manifest.info, carried_info(model, facts)])


def read_folder(folder: Path) -> BundleManifest:
    """The manifest of an unpacked bundle; raises SlimdeployError if a file has changed since."""
    found = BundleManifest.of_folder(folder)
    for entry in found.files:
        if artifacts.sha256_file(folder / entry.path) != entry.sha256:
            raise SlimdeployError(
                f"{folder / entry.path} has changed since it was deployed: deploy its bundle again"
            )
    return found


def golden_images(folder: Path, bundle: BundleManifest) -> np.ndarray:
    """(N, size, size, 3) uint8 from an unpacked bundle."""
    return _numbers(folder / manifest.GOLDEN_IMAGES, np.uint8, _image_shape(bundle, bundle.golden_images))


def golden_logits(folder: Path, bundle: BundleManifest, variant: Variant) -> np.ndarray:
    """(N, classes) float32: the host's logits for the golden images."""
    return _numbers(
        folder / variant.golden, np.dtype("<f4"), (bundle.golden_images, bundle.info.graph.classes)
    )


def evaluation_set(folder: Path, bundle: BundleManifest) -> tuple[np.ndarray, np.ndarray]:
    """Images (M, size, size, 3) uint8 and labels (M,) int32; both empty in a bundle without data."""
    count = bundle.evaluation_images
    shape = _image_shape(bundle, count)
    if not count:
        return np.empty(shape, np.uint8), np.empty(0, np.int32)
    images = _numbers(folder / manifest.EVALUATION_IMAGES, np.uint8, shape)
    return images, _numbers(folder / manifest.EVALUATION_LABELS, np.dtype("<i4"), (count,))


def _image_shape(bundle: BundleManifest, count: int) -> tuple[int, ...]:
    size = bundle.info.preprocessing.size
    return (count, size, size, 3)


def _numbers(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.fromfile(path, dtype).reshape(shape)
    except (OSError, ValueError) as error:
        raise SlimdeployError(f"{path}: damaged ({error}); deploy its bundle again") from error


def _run_on_host(model: Path, info: ModelInfo, images: Images) -> tuple[np.ndarray, float | None]:
    """Golden logits, and accuracy on the evaluation set, with one thread for a fixed order of summation."""
    with open_session(model, options=SessionOptions(device="cpu", threads=1)) as session:
        golden = compute_logits(session, images.golden, info.preprocessing, batch=_BATCH)
        if not np.isfinite(golden).all():
            raise SlimdeployError(f"{model}: its logits are not finite")
        if not len(images.evaluation):
            return golden, None
        logits = compute_logits(session, images.evaluation, info.preprocessing, batch=_BATCH)
    return golden, round(float((logits.argmax(1) == images.labels).mean()), 6)


def _check_images(model: Path, info: ModelInfo, images: Images) -> None:
    size = info.preprocessing.size
    if images.golden.shape[1:] != (size, size, 3):
        height, width = images.golden.shape[1:3]
        raise SlimdeployError(f"{model} takes images of {size}×{size} pixels, the data has {width}×{height}")
    if len(images.labels) and images.labels.max() >= info.graph.classes:
        raise SlimdeployError(f"{model} has {info.graph.classes} classes, but the data has more")


def _check_one_network(paths: Sequence[Path], infos: Sequence[ModelInfo]) -> None:
    """Check that all models are one network: same channels, same checkpoint, same preprocessing and
    classes.
    """
    for path, info in zip(paths[1:], infos[1:], strict=True):
        for what, own, first in (
            ("preprocessing", info.preprocessing, infos[0].preprocessing),
            ("class names", info.class_names, infos[0].class_names),
            ("network", info.graph, infos[0].graph),
            ("checkpoint", _checkpoint_of(info), _checkpoint_of(infos[0])),
        ):
            if own != first:
                raise SlimdeployError(
                    f"{path}: its {what} differs from {paths[0]}; a bundle contains one network, "
                    "once for each precision"
                )


def _checkpoint_of(info: ModelInfo) -> object:
    """SHA-256 of the checkpoint from which the model was exported; None if unknown."""
    exports = [entry.get("parent") for entry in info.provenance if entry.get("stage") == "export"]
    return exports[-1] if exports else None


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[container.Reader]:
    refuse_other_kind(path, BUNDLE)
    try:
        with open(path, "rb") as file:
            yield container.Reader(file, path)
    except FileNotFoundError:
        raise SlimdeployError(f"no bundle at {path}") from None
    except OSError as error:
        raise SlimdeployError(f"cannot read {path}: {error.strerror}") from error


def _read_head(reader: container.Reader, path: Path) -> Bundle:
    content = reader.small_member(container.MANIFEST, container.MAX_MANIFEST_BYTES)
    signed = None
    if reader.next_is(container.SIGNATURE):
        signed = reader.small_member(container.SIGNATURE, container.MAX_SIGNATURE_BYTES)
    found = BundleManifest.from_json(content, str(path))
    members = [
        len(content),
        *([] if signed is None else [len(signed)]),
        *(file.bytes for file in found.files),
    ]
    expected = sum(map(container.member_bytes, members)) + len(container.END)
    if reader.total_bytes != expected:
        raise SlimdeployError(
            f"{path}: not a complete bundle, {reader.total_bytes} bytes instead of {expected}: copy it again"
        )
    return Bundle(path, found, content, signed)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o755)
    except OSError as error:
        raise SlimdeployError(f"cannot make the folder {folder}: {error.strerror}") from error


def _write_new(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a new file and flush it to disk."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SlimdeployError(f"cannot write {path}: {error.strerror}") from error
