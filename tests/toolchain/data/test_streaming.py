"""Images that stay in their files: the same batches, statistics and results as from memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import process_environment
from tiny import write_checkpoint, write_image_folder

from slimdeploy.toolchain.data import decoding, files
from slimdeploy.toolchain.data.augmentation import Augmentation
from slimdeploy.toolchain.data.batches import TrainingBatches, plain_batches
from slimdeploy.toolchain.data.dataset import DataOptions, Dataset, load_dataset
from slimdeploy.toolchain.data.files import FileImages
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint


def _load(folder: Path, *, stream: bool | None, size: int | None = None) -> Dataset:
    return load_dataset(DataOptions(f"folder:{folder}", size=size, stream=stream))


@pytest.fixture(params=[None, 12])
def both(request: pytest.FixtureRequest, image_folder: Path) -> tuple[Dataset, Dataset]:
    """The same data in files and in memory, at its own size and resized."""
    streamed, memory = (_load(image_folder, stream=s, size=request.param) for s in (True, False))
    assert isinstance(streamed.train.stored, FileImages)
    assert isinstance(memory.train.stored, np.ndarray)
    return streamed, memory


def test_classes_statistics_and_images_are_the_same(both: tuple[Dataset, Dataset]) -> None:
    streamed, memory = both
    assert streamed.class_names == memory.class_names
    assert streamed.preprocessing == memory.preprocessing
    assert streamed.train.stored.shape == memory.train.stored.shape
    for mine, theirs in ((streamed.train, memory.train), (streamed.test, memory.test)):
        assert np.array_equal(mine.labels, theirs.labels)
        assert np.array_equal(mine.images, theirs.images)
        chosen = np.array([5, 2, 2])
        assert np.array_equal(mine.take(chosen).images, theirs.take(chosen).images)
        assert np.array_equal(mine.stored[3:7], theirs.stored[3:7])
        assert np.array_equal(mine.stored[4], theirs.stored[4])
        assert mine.take(np.arange(0)).images.shape == theirs.take(np.arange(0)).images.shape


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(0, False), Augmentation(3, True, mixup=0.2, cutmix=1.0, cutout=3)],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_training_batches_are_the_same_bit_for_bit(
    both: tuple[Dataset, Dataset], augmentation: Augmentation, rank: int
) -> None:
    batches = [
        TrainingBatches(
            data.train,
            data.preprocessing,
            batch_size=17,
            augmentation=augmentation,
            classes=len(data.class_names),
            device="cpu",
            seed=3,
            rank=rank,
            ranks=2,
        )
        for data in both
    ]
    assert len(batches[0]) == len(batches[1]) == 3
    for epoch in (0, 1):
        pairs = list(zip(*(each.epoch(epoch) for each in batches), strict=True))
        assert len(pairs) == 3
        for (images, labels), (expected, expected_labels) in pairs:
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)
            assert images.is_contiguous(memory_format=torch.channels_last)


def test_crops_and_colours_are_the_same_to_a_few_levels(both: tuple[Dataset, Dataset]) -> None:
    augmentation = Augmentation(resized_crop=0.2, color_jitter=0.4)
    streamed, memory = (
        next(
            TrainingBatches(
                data.train, data.preprocessing, batch_size=40, augmentation=augmentation, device="cpu", seed=3
            ).epoch(0)
        )[0]
        for data in both
    )  # fmt: skip
    level = 1 / (255 * min(both[0].preprocessing.std))
    assert (streamed - memory).abs().max() < 5 * level  # a level of the crop, amplified twice
    assert (streamed - memory).abs().mean() < 0.3 * level


def test_plain_batches_are_the_same(both: tuple[Dataset, Dataset]) -> None:
    found = [list(plain_batches(d.test, d.preprocessing, batch_size=10, device="cpu")) for d in both]
    assert [len(labels) for _, labels in found[0]] == [10, 10, 4]
    for (images, labels), (expected, expected_labels) in zip(*found, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_an_epoch_that_was_left_early_leaves_nothing_behind(both: tuple[Dataset, Dataset]) -> None:
    batches = [
        TrainingBatches(
            data.train,
            data.preprocessing,
            batch_size=10,
            augmentation=Augmentation(),
            device="cpu",
            seed=0,
        )
        for data in both
    ]
    next(batches[0].epoch(0))
    for (images, _), (expected, _) in zip(batches[0].epoch(1), batches[1].epoch(1), strict=True):
        assert torch.equal(images, expected)


def test_large_sets_are_streamed_by_themselves(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 84 * 16 * 16 * 3
    for free, streamed in ((decoded * 2, False), (decoded * 2 - 2, True), (None, False)):
        monkeypatch.setattr(files, "_free_bytes", lambda free=free: free)
        found = _load(image_folder, stream=None)
        assert isinstance(found.train.stored, FileImages) is streamed
    monkeypatch.setattr(files, "_free_bytes", lambda: decoded * 3)
    torchrun = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "x",
    }
    for name, value in torchrun.items():
        monkeypatch.setenv(name, value)
    assert isinstance(_load(image_folder, stream=None).train.stored, FileImages), "each process holds all"
    monkeypatch.undo()
    assert files._free_bytes() > 0
    assert isinstance(_load(image_folder, stream=None).train.stored, np.ndarray)


def test_statistics_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_image_folder(tmp_path / "images", train=4, test=2)
    first = _load(folder, stream=True).preprocessing
    decoded: list[str] = []
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda file, how: decoded.append(file) or decode(file, how))
    assert _load(folder, stream=True).preprocessing == first
    assert len(decoded) == 1, "to learn the size"
    shutil.copy(next((folder / "train/red").iterdir()), folder / "train/red/9999.png")
    assert _load(folder, stream=True).preprocessing != first
    assert len(decoded) == 1 + 1 + 13


def test_an_unreadable_or_odd_file_is_one_line(tmp_path: Path) -> None:
    from PIL import Image

    folder = write_image_folder(tmp_path / "images", train=4, test=2)
    data = _load(folder, stream=True)
    broken = sorted((folder / "train/green").iterdir())[2]
    for spoil, error in (
        (lambda: broken.write_bytes(b"no image"), rf"^{broken}: not a readable image \("),
        (
            lambda: Image.new("RGB", (9, 7)).save(broken),
            rf"^{broken} is 9×7, but earlier images are 16×16: pass ",
        ),
    ):
        spoil()
        with pytest.raises(SlimdeployError, match=error) as refused:
            list(plain_batches(data.train, data.preprocessing, batch_size=5, device="cpu"))
        assert "\n" not in str(refused.value)


def test_only_files_can_be_streamed() -> None:
    with pytest.raises(SlimdeployError, match=r"^digits can't be streamed: only folder:PATH can$"):
        load_dataset(DataOptions("digits", stream=True))


def test_the_commands_give_the_same_either_way(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    results = {}
    for option in ("--stream", "--no-stream"):
        output = tmp_path / f"{option}.safetensors"
        trained = slimdeploy_command(
            "train", "--arch", "tiny", "--stem", "cifar", "--data", f"folder:{image_folder}", "--epochs", 2,
            "--batch-size", 16, "--precision", "fp32", "--device", "cpu", "-o", output, option, "--json",
        )  # fmt: skip
        assert trained.exit_code == 0, trained.err
        evaluated = slimdeploy_command("evaluate", output, "--json")
        assert evaluated.exit_code == 0, evaluated.err
        results[option] = (trained.json["accuracy"], trained.json["loss"],
                           evaluated.json["loss"], load_checkpoint(output).network.state_dict())  # fmt: skip
    (*mine, network), (*theirs, expected) = results.values()
    assert mine == theirs
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.items())


def test_a_changed_file_repeats_the_stages_of_a_run(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "images", train=3, test=2)
    first = _load(folder, stream=True).digest()
    assert _load(folder, stream=True).digest() == first
    assert _load(folder, stream=False).digest() == first, "free memory may change between two runs"
    copied = shutil.copytree(folder, tmp_path / "copied", copy_function=shutil.copyfile)
    assert _load(copied, stream=True).digest() == first, "another path and other times"
    shutil.copy(*sorted((folder / "test/red").iterdir()))
    assert _load(folder, stream=True).digest() != first


_FULL = """
import sys
from slimdeploy.toolchain.data.batches import plain_batches
from slimdeploy.toolchain.data.dataset import DataOptions, load_dataset
data = load_dataset(DataOptions(f"folder:{sys.argv[1]}", size=512, stream=True))
batches = plain_batches(data.train, data.preprocessing, batch_size=4, device="cpu")
print(sum(len(labels) for _, labels in batches))
"""


def test_workers_need_no_shared_memory(tmp_path: Path) -> None:
    """In a container with next to no /dev/shm, whose batches of 3 MiB don't fit in it."""
    own = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    mount = "mount -t tmpfs -o size=256k tmpfs /dev/shm"
    if shutil.which("unshare") is None or subprocess.run([*own, mount], capture_output=True).returncode:
        pytest.skip("this machine doesn't allow a /dev/shm of one's own (unshare, mount)")
    folder = write_image_folder(tmp_path / "images", train=4, test=1)
    command = [*own, f'{mount} && exec "$0" "$@"', sys.executable, "-c", _FULL, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=process_environment())
    assert (done.returncode, done.stdout.strip()) == (0, "12"), done.stderr


def test_pruning_with_data_takes_streamed_images(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "x.safetensors")
    found = []
    for option in ("--stream", "--no-stream"):
        ran = slimdeploy_command("prune", checkpoint, "--ratio", 0.3, "--align", 1, "--data",
                                 f"folder:{image_folder}", "--statistics-images", 32, "-o",
                                 tmp_path / option, option, "--device", "cpu", "--json")  # fmt: skip
        assert ran.exit_code == 0, ran.err
        found.append(ran.json["accuracy"])
    assert found[0] == found[1]
