"""Small real models and bundles, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from slimdeploy.tests.toolchain.deploy.over_ssh import device, device_python, device_wheels, sshd  # noqa: F401
from slimdeploy.toolchain.deploy.bundle import write_bundle
from slimdeploy.toolchain.deploy.samples import Images
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.export.onnx import build_onnx
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.module import build_network
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.preprocess import normalise

SIZE = 16
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.45, 0.4), (0.25, 0.2, 0.3))


def build_model(
    path: Path, *, seed: int = 0, classes: int = 4, provenance: tuple = (), channels: list[int] | None = None
) -> Path:
    """A ResNet-18 of 8 channels everywhere, or of `channels`, with random weights."""
    spec = build_graph("resnet18", classes=classes, channels=channels or [8] * 17)
    names = tuple(str(i) if provenance else f"class-{i}" for i in range(classes))
    info = ModelInfo(spec, PREPROCESSING, names, {"accuracy": {"test": 0.5}}, provenance)
    onnx.save(build_onnx(build_network(spec, seed=seed), info), path)
    return path


def noise(count: int, *, seed: int = 0, size: int = SIZE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size // 4, size // 4, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)


def quantise(model: Path, path: Path) -> Path:
    """The model in INT8, by onnxruntime's own quantiser."""

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"images": normalise(noise(16), PREPROCESSING)}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    quantize_static(
        str(model), str(path), Reader(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    made = onnx.load(path)
    carried = {p.key: p.value for p in onnx.load(model).metadata_props}
    onnx.helper.set_model_props(made, {**carried, "precision": "int8", "target": "cpu"})
    onnx.save(made, path)
    return path


def make_images(model: Path, *, evaluation: int = 24) -> Images:
    """Random images, labelled with what the model answers (so its accuracy on the host is 1)."""
    from slimdeploy.toolchain.deploy.golden import compute_logits
    from slimdeploy.toolchain.runtime.session import open_session

    pictures = noise(evaluation, seed=1)
    with open_session(model) as session:
        labels = compute_logits(session, pictures, PREPROCESSING, batch=8).argmax(1)
    return Images(noise(6, seed=2), pictures, labels, "random")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`fp32` and `int8` of one network, `other` of another."""
    folder = tmp_path_factory.mktemp("models")
    fp32 = build_model(folder / "net.onnx")
    return {
        "fp32": fp32,
        "int8": quantise(fp32, folder / "net-int8.onnx"),
        "other": build_model(folder / "other.onnx", seed=1),
    }


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """`make_model(path, seed=0, classes=4, provenance=())` → path"""
    return build_model


@pytest.fixture(scope="session")
def random_images() -> Callable[..., np.ndarray]:
    """`random_images(count, seed=0)` → (count, 16, 16, 3) uint8"""
    return noise


@pytest.fixture(scope="session")
def images(models: dict[str, Path]) -> Images:
    return make_images(models["fp32"])


@pytest.fixture(scope="session")
def bundle(models: dict[str, Path], images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 and INT8 of one network in a bundle. Not to be changed: copy it."""
    path = tmp_path_factory.mktemp("bundles") / "net.slim.tar"
    write_bundle(path, [models["fp32"], models["int8"]], images)
    return path


@pytest.fixture(scope="session")
def other_bundle(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another network."""
    path = tmp_path_factory.mktemp("bundles") / "other.slim.tar"
    write_bundle(path, [models["other"]], make_images(models["other"]))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
