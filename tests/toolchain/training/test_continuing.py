"""What a network was trained with is the default of every later training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import model_info

from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.training.continuing import as_before
from slimdeploy.toolchain.training.options import WEIGHTS_LR, TrainOptions

TRAINED = ["--no-flip", "--crop-pad", 1, "--batch-size", 16, "--validation", 0.3, "--weight-decay", 0]


@pytest.fixture(scope="module")
def images(image_folder: Path) -> str:
    return f"folder:{image_folder}"


@pytest.fixture
def trained(slimdeploy_command: Callable, images: str, tmp_path: Path) -> Path:
    output = tmp_path / "trained.safetensors"
    train = ["train", "--arch", "tiny-deep", "--stem", "cifar", "--data", images, "--epochs", 1]
    ran = slimdeploy_command(*train, *TRAINED, "-o", output)
    assert ran.exit_code == 0, ran.err
    return output


def _options(checkpoint: Path) -> dict[str, Any]:
    return load_checkpoint(checkpoint).info.provenance[-1]["options"]


def _kept(options: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(options[name] for name in ("flip", "crop_pad", "batch_size", "validation", "weight_decay"))


def test_fine_tuning_goes_on_as_it_was_trained(
    slimdeploy_command: Callable, trained: Path, images: str, tmp_path: Path
) -> None:
    pruned, tuned = tmp_path / "pruned.safetensors", tmp_path / "tuned.safetensors"
    ran = slimdeploy_command(
        "prune", trained, "--ratio", 0.3, "--align", 1, "--steps", 2, "--data", images, "-o", pruned
    )
    assert ran.exit_code == 0, ran.err
    assert "options of the network's last training: --batch-size 16 --weight-decay 0" in ran.err
    assert "--validation 0.3 --crop-pad 1 --no-flip" in ran.err
    ran = slimdeploy_command("finetune", pruned, "--epochs", 1, "--crop-pad", 2, "-o", tuned)
    assert ran.exit_code == 0, ran.err
    assert _kept(_options(tuned)) == (False, 2, 16, 0.3, 0.0)
    assert _options(tuned)["lr"] == 1e-3


def test_weights_bring_their_options_and_a_gentle_rate(
    slimdeploy_command: Callable, trained: Path, images: str, tmp_path: Path
) -> None:
    train = ["train", "--weights", trained, "--data", images, "--epochs", 1, "--flip"]
    ran = slimdeploy_command(*train, "-o", tmp_path / "a.safetensors")
    assert ran.exit_code == 0, ran.err
    assert _kept(_options(tmp_path / "a.safetensors")) == (True, 1, 16, 0.3, 0.0)
    assert _options(tmp_path / "a.safetensors")["lr"] == WEIGHTS_LR
    assert "--lr 0.003, because the training starts from weights" in ran.err
    ran = slimdeploy_command(*train, "--lr", 0.05, "-o", tmp_path / "b.safetensors")
    assert _options(tmp_path / "b.safetensors")["lr"] == 0.05
    assert "starts from weights" not in ran.err


def test_other_data_has_its_own_validation_images() -> None:
    before = TrainOptions(flip=False, validation=0.3, limit=50)
    info = model_info(build_graph("tiny", classes=3))
    info = info.after("train", metrics={}, options=before.to_json(), data={"name": "folder:images"})
    info = info.after("prune", metrics={}, options={"ratio": 0.5}, data=None)
    found = as_before(TrainOptions(), info, given=(), data="folder:./images/")
    assert (found.flip, found.validation, found.limit) == (False, 0.3, 50)
    found = as_before(TrainOptions(), info, given=(), data="digits")
    assert (found.flip, found.validation, found.limit) == (False, 0.1, None)
    found = as_before(TrainOptions(limit=9), info, given=("limit", "flip"), data="folder:images")
    assert (found.flip, found.validation, found.limit) == (True, 0.3, 9)
    fresh = model_info(build_graph("tiny", classes=3))
    assert as_before(TrainOptions(), fresh, given=(), data="digits") == TrainOptions()
    unnamed = fresh.after("train", metrics={}, options=before.to_json())  # as by the library
    found = as_before(TrainOptions(), unnamed, given=(), data="")
    assert (found.flip, found.validation, found.limit) == (False, 0.1, None)


@pytest.mark.parametrize(
    ("given", "crop"),
    [
        ({}, (0, 0.3)),
        ({"crop_pad": 2}, (2, 0)),
        ({"augmentation": "cifar"}, (4, 0)),
        ({"flip": False}, (0, 0.3)),
    ],
)
def test_a_crop_is_taken_over_whole(given: dict[str, Any], crop: tuple[int, float]) -> None:
    before = TrainOptions(augmentation="imagenet", resized_crop=0.3, mixup=0.2)
    info = model_info(build_graph("tiny", classes=3))
    info = info.after("train", metrics={}, options=before.to_json(), data={"name": "digits"})
    found = as_before(TrainOptions(**given), info, given=given, data="digits")
    assert (found.augmentations.pad, found.augmentations.resized_crop) == crop
    assert found.mixup == 0.2


def test_what_an_older_file_says_of_its_crop_holds() -> None:
    info = model_info(build_graph("tiny", classes=3))
    info = info.after("train", metrics={}, options={"crop_pad": 4, "flip": False}, data={"name": "digits"})
    found = as_before(TrainOptions(), info, given=(), data="digits").augmentations
    assert (found.pad, found.resized_crop, found.flip) == (4, 0, False)
