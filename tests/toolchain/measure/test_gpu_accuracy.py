"""Accuracy counted on a GPU: the kernels compiled for the host, around an engine on a fake TensorRT."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from slimdeploy.tests import small_network
from slimdeploy.tests.toolchain.tensorrt_fake import FakeTensorrt
from slimdeploy.toolchain.cli import cli
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.engine import export_engine
from slimdeploy.toolchain.export.engine_options import EngineOptions
from slimdeploy.toolchain.measure.gpu_accuracy import Count, count_correct
from slimdeploy.toolchain.runtime import tensorrt as runtime
from slimdeploy.toolchain.runtime.preprocess import normalise

small_checkpoint, models = small_network.small_checkpoint, small_network.models
pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no g++ to compile the kernels for the host"
)


@pytest.fixture(scope="module", autouse=True)
def cache_of_compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMDEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def trt() -> FakeTensorrt:
    return FakeTensorrt("10.13.3")


def engine_of(trt: FakeTensorrt, onnx: Path, folder: Path) -> Path:
    return export_engine(
        trt, onnx, folder / "m.engine", EngineOptions(batch=(2, 3, 4)), device=trt._device
    ).path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Eleven: parts of four, four and three."""
    return np.random.default_rng(3).integers(0, 256, (11, 16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("kind", "graphs", "count"),
    [
        ("fp32", True, 11),
        ("fp16", True, 11),
        ("int8", True, 5),  # the last part is one image, fewer than the profile's least
        ("fp32", False, 5),
        ("fp16", False, 1),
    ],
)
def test_the_count_is_that_of_numpy(
    kind: str, graphs: bool, count: int, trt: FakeTensorrt, models: dict[str, Path], images: np.ndarray,
    tmp_path: Path,
) -> None:  # fmt: skip
    used = images[:count]
    with runtime.load(trt, engine_of(trt, models[kind], tmp_path), trt._device, graphs=graphs) as session:
        assert session.info is not None
        preprocessing = session.info.preprocessing
        best = session.run(normalise(used, preprocessing)).argmax(axis=1)
        labels = np.where(np.arange(count) % 3 == 0, (best + 1) % 4, best).astype(np.int64)
        before = len(trt._device.buffers)
        found = count_correct(session, used, labels, preprocessing)
        assert len(trt._device.buffers) == before, "all memory given back"
    assert found == Count(int((best == labels).sum()), count)


def test_what_cannot_be_counted_is_refused(
    trt: FakeTensorrt, models: dict[str, Path], images: np.ndarray, tmp_path: Path
) -> None:
    with runtime.load(trt, engine_of(trt, models["fp32"], tmp_path), trt._device, graphs=True) as session:
        assert session.info is not None
        preprocessing = session.info.preprocessing
        with pytest.raises(SlimdeployError, match="no images to evaluate on"):
            count_correct(session, images[:0], np.zeros(0, np.int64), preprocessing)
        with pytest.raises(SlimdeployError, match="class index 4, but the model has only 4 classes"):
            count_correct(session, images, np.full(11, 4), preprocessing)


@pytest.fixture
def folder(tmp_path: Path, images: np.ndarray) -> Path:
    for split in ("train", "test"):
        for i, image in enumerate(images):
            file = tmp_path / "images" / split / ("cat", "dog", "frog", "ship")[i % 4] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return tmp_path / "images"


def test_evaluate_counts_what_it_counts_with_logits(
    trt: FakeTensorrt, models: dict[str, Path], folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = engine_of(trt, models["fp32"], tmp_path)

    def device() -> object:
        trt._device.closed = False
        return trt._device

    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(runtime, "open_device", device)
    arguments = ["evaluate", str(engine), "--data", f"folder:{folder}", "--json"]
    whole, counted = (
        json.loads(CliRunner().invoke(cli, [*arguments, *more]).stdout) for more in ([], ["--accuracy-only"])
    )
    known = ("model", "backend", "precision", "accuracy", "accuracy_ci95", "images")
    assert [counted[key] for key in known] == [whole[key] for key in known]
    assert counted.keys() == whole.keys()
    assert {key for key, value in counted.items() if value is None} == whole.keys() - set(known)
    text = CliRunner().invoke(cli, [*arguments[:-1], "--accuracy-only"]).stdout
    assert "test accuracy" in text
    assert "loss" not in text


def test_what_is_no_engine_says_so(models: dict[str, Path], folder: Path) -> None:
    ran = CliRunner().invoke(
        cli, ["evaluate", str(models["fp32"]), "--data", f"folder:{folder}", "--accuracy-only"]
    )
    assert "--accuracy-only counts on the GPU and needs an engine; this is onnxruntime-cpu" in str(
        ran.exception
    )
