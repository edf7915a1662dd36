"""The built-in sources."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pickle
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from slimdeploy.toolchain.data.dataset import DataOptions, load_dataset
from slimdeploy.toolchain.data.sources import CIFAR10_MEAN, CIFAR10_STD, statistics
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.torchvision import import_torchvision

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def test_digits() -> None:
    dataset = load_dataset(DataOptions("digits"))
    assert dataset.class_names == tuple("0123456789")
    assert len(dataset.train) + len(dataset.test) == 1797
    assert dataset.train.images.shape[1:] == (16, 16, 3)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.images.max() == 255
    for label in range(10):
        trained, tested = (int((split.labels == label).sum()) for split in (dataset.train, dataset.test))
        assert tested == -(-(trained + tested) // 5), "a fifth of every class"
    assert load_dataset(DataOptions("digits", size=8)).train.images.shape[1:] == (8, 8, 3)


def test_digits_of_the_two_splits_are_other_images() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset(DataOptions("digits", size=8))
    rebuilt = np.concatenate([dataset.train.images, dataset.test.images])[..., 0]
    original = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    assert sorted(image.tobytes() for image in rebuilt) == sorted(image.tobytes() for image in original)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_sources_without_argument_refuse_one(name: str) -> None:
    with pytest.raises(SlimdeployError, match=f"data {name} takes no ':extra'"):
        load_dataset(DataOptions(f"{name}:extra"))


@pytest.fixture
def cifar10_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's files as torchvision wants them, with 20 images in each batch; image i of a batch is all
    i's.
    """
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (base / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    rows = np.repeat(np.arange(20, dtype=np.uint8)[:, None], 3072, axis=1)
    rows[:, :1024] += 100  # red is the first of the three planes
    batch = {"data": rows, "labels": [i % 10 for i in range(20)]}
    cifar10 = import_torchvision().datasets.CIFAR10
    names = [f"data_batch_{i}" for i in range(1, 6)]
    monkeypatch.setattr(cifar10, "train_list", [[name, write(name, batch)] for name in names])
    monkeypatch.setattr(cifar10, "test_list", [["test_batch", write("test_batch", batch)]])
    meta = {"filename": "batches.meta", "key": "label_names"}
    meta["md5"] = write("batches.meta", {"label_names": CIFAR_CLASSES})
    monkeypatch.setattr(cifar10, "meta", meta)
    return tmp_path


def test_cifar10(cifar10_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = load_dataset(DataOptions("cifar10", cifar10_dir))
    assert dataset.class_names == tuple(CIFAR_CLASSES)
    assert dataset.train.images.shape == (100, 32, 32, 3)
    assert dataset.test.images.shape == (20, 32, 32, 3)
    assert dataset.test.images[7, 0, 0].tolist() == [107, 7, 7], "planes become red, green, blue"
    np.testing.assert_array_equal(dataset.test.labels, np.arange(20) % 10)
    assert dataset.preprocessing.mean == CIFAR10_MEAN
    assert dataset.preprocessing.std == CIFAR10_STD
    assert capfd.readouterr().out == ""
    assert load_dataset(DataOptions("cifar10", cifar10_dir, size=16)).test.images.shape == (20, 16, 16, 3)


def test_a_changed_cifar10_file_is_never_unpickled(
    cifar10_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(cifar10_dir / "executed"), "w"))

    def offline(url: str, *arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    (cifar10_dir / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Trap()))
    message = rf"cifar10 is not in {cifar10_dir} and can't be downloaded \(no network\)"
    with pytest.raises(SlimdeployError, match=message):
        load_dataset(DataOptions("cifar10", cifar10_dir))
    assert not (cifar10_dir / "executed").exists()


def test_cifar10_is_downloaded_where_it_is_missing(
    cifar10_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cifar10_dir / "cifar-10-batches-py", "cifar-10-batches-py")
    cifar10 = import_torchvision().datasets.CIFAR10
    monkeypatch.setattr(cifar10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(cifar10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        dataset = load_dataset(DataOptions("cifar10", tmp_path / "elsewhere"))
        server.shutdown()
    assert len(dataset.train) == 100
    assert capfd.readouterr().out == "", "standard output belongs to --json"


def test_mean_and_deviation_are_exact() -> None:
    images = np.zeros((2, 2, 2, 3), dtype=np.uint8)
    images[0, ..., 0], images[..., 1] = 255, 51
    assert statistics(images, "rgb") == ((0.5, 0.2, 0.0), (0.5, 0.001, 0.001))
    gray = (106 + 30) / 2 / 255  # 0.299 × 255 + 0.587 × 51, and the second alone
    assert statistics(images, "gray") == ((round(gray, 4),), (round((106 - 30) / 2 / 255, 4),))
