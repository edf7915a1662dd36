"""`slimdeploy train` and `finetune` as a user meets them: results and refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import CLASSES, PREPROCESSING, learnable_split, write_checkpoint
from tiny_runs import train_arguments

from slimdeploy.toolchain.data.dataset import DataOptions, Dataset
from slimdeploy.toolchain.data.of_model import dataset_for
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.pruning.recalibration import recalibrate, shuffled
from slimdeploy.toolchain.training import loop
from slimdeploy.toolchain.training.history import read_history
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.state import state_path
from slimdeploy.toolchain.training.training_data import training_data


def test_train_reports_what_it_did(slimdeploy_command: Callable, image_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "net.safetensors"
    ran = slimdeploy_command(*train_arguments(image_folder, output, "--json"))
    assert ran.exit_code == 0, ran.err
    result = ran.json
    assert result["checkpoint"] == str(output)
    assert result["epochs"] == 2
    assert set(result["accuracy"]) == {"train", "val", "test"}
    assert result["images_per_second"] > 0
    assert "epoch 2/2 · loss" in ran.err
    evaluated = slimdeploy_command("evaluate", output, "--json").json
    assert evaluated["accuracy"] == result["accuracy"]["test"]
    assert evaluated["loss"] == pytest.approx(result["loss"]["test"], rel=1e-5)
    assert evaluated["images"] == 24
    entry = load_checkpoint(output).info.provenance[-1]
    assert (entry["stage"], entry["options"]["sparsity"], entry["parent"]) == ("train", 0.01, None)
    assert entry["data"]["name"] == f"folder:{image_folder}"
    assert entry["versions"]["torch"] == torch.__version__
    assert not state_path(output).exists()
    assert len(read_history(output)) == 2


def test_no_epochs_write_the_fresh_network(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    ran = slimdeploy_command(*train_arguments(image_folder, tmp_path / "net", "--json", epochs=0))
    assert ran.exit_code == 0, ran.err
    assert ran.json["epochs"] == 0
    assert set(ran.json["accuracy"]) == {"val", "test"}


def test_limit_trains_on_a_balanced_subset(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    fit = loop.fit

    def watched(network, data, *arguments, **options):
        seen["labels"] = torch.tensor([*data.train.labels, *data.validation.labels]).bincount().tolist()
        return fit(network, data, *arguments, **options)

    monkeypatch.setattr("slimdeploy.toolchain.library.train.fit", watched)
    ran = slimdeploy_command(
        *train_arguments(image_folder, tmp_path / "net", "--limit", 31, "--validation", 0.2, epochs=0)
    )
    assert ran.exit_code == 0, ran.err
    assert sorted(seen["labels"]) == [10, 10, 11]


def test_finetune_goes_on_with_the_data_of_its_checkpoint(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    trained = slimdeploy_command(*train_arguments(image_folder, first, "--json")).json
    ran = slimdeploy_command("finetune", first, "--epochs", 1, "--batch-size", 16, "-o", second, "--json")
    assert ran.exit_code == 0, ran.err
    provenance = load_checkpoint(second).info.provenance
    assert [entry["stage"] for entry in provenance] == ["train", "finetune"]
    assert provenance[-1]["parent"] == trained["sha256"]
    assert provenance[-1]["options"]["sparsity"] == 0
    assert provenance[-1]["data"]["name"] == f"folder:{image_folder}"


def test_every_option_of_the_objective_goes_through_and_resumes(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--sparsity", "auto:0.3", "--sparse-align", 1, "--ema", 0.8, "--cutout", 4, "--flip-mode",
            "alternating", "--label-smoothing", 0.1, "--recalibration-images", 32, "--resized-crop", 0.4,
            "--color-jitter", 0.2, "--mixup", 0.4, "--cutmix", 1, "--json")  # fmt: skip
    whole = tmp_path / "whole.safetensors"
    expected = slimdeploy_command(*train_arguments(image_folder, whole, *more, epochs=4))
    assert expected.exit_code == 0, expected.err
    assert expected.json["zero_share"] == pytest.approx(0.3, abs=1 / 60)
    assert max(record.strength for record in read_history(whole)) > 0
    entry = load_checkpoint(whole).info.provenance[-1]
    assert (entry["options"]["sparsity"], entry["options"]["ema"]) == ("auto:0.3", 0.8)

    output = tmp_path / "broken.safetensors"
    write, left = loop.write_history, [2]

    def killed(*arguments: object) -> None:
        write(*arguments)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_history", killed)
        slimdeploy_command(*train_arguments(image_folder, output, *more, epochs=4))
    assert not output.exists()
    ran = slimdeploy_command(*train_arguments(image_folder, output, *more, "--resume", epochs=4))
    assert ran.exit_code == 0, ran.err
    assert "resuming after epoch 2 of 4" in ran.err
    assert ran.json["accuracy"] == expected.json["accuracy"]
    a, b = load_checkpoint(whole).network.state_dict(), load_checkpoint(output).network.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    ran = slimdeploy_command("prune", output, "--ratio", 0.3, "--align", 1, "--no-compensate", "--json",
                             "--data", f"folder:{image_folder}", "-o", tmp_path / "pruned")  # fmt: skip
    assert ran.exit_code == 0, ran.err
    assert (
        ran.json["accuracy"]["after"] == ran.json["accuracy"]["before"] == expected.json["accuracy"]["test"]
    )


def test_a_share_that_the_network_does_not_allow_is_one_line(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    ran = slimdeploy_command(*train_arguments(image_folder, tmp_path / "net", "--sparsity", "auto:0.9"))
    assert ran.exit_code == 2
    assert ran.error.startswith("sparsity auto:0.9: ")
    assert ran.error.endswith("a smaller share, or a smaller --sparse-align")
    ran = slimdeploy_command(*train_arguments(image_folder, tmp_path / "net", "--sparsity", "much"))
    assert ran.error == (
        "--sparsity must be a number (λ) or auto:SHARE with a share between 0 and 1, e.g. auto:0.9, "
        "not 'much'"
    )
    assert not list(tmp_path.iterdir())


def test_recalibration_measures_the_statistics_anew(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    plain, measured = tmp_path / "plain", tmp_path / "measured"
    for output, images in ((plain, 0), (measured, 54)):
        assert (
            slimdeploy_command(
                *train_arguments(image_folder, output, "--recalibration-images", images)
            ).exit_code
            == 0
        )
    a, b = load_checkpoint(plain).network, load_checkpoint(measured).network
    for (name, one), (_, other) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    again = load_checkpoint(plain)
    dataset = dataset_for(again.info, DataOptions(f"folder:{image_folder}"), plain)
    train = training_data(dataset, TrainOptions()).train
    recalibrate(again.network, shuffled(train, dataset.preprocessing, device="cpu"), device="cpu")
    torch.testing.assert_close(b.bn1.running_mean, again.network.bn1.running_mean)
    assert not torch.allclose(a.bn1.running_mean, b.bn1.running_mean)


def test_finetune_learns_from_a_teacher(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    teacher, other = (
        write_checkpoint(tmp_path / "teacher", seed=1),
        write_checkpoint(tmp_path / "other", seed=2),
    )
    student = write_checkpoint(tmp_path / "student")

    def finetune(name: str, *more: object) -> Path:
        output = tmp_path / name
        ran = slimdeploy_command("finetune", student, "--data", f"folder:{image_folder}", "--epochs", 1,
                                 "--batch-size", 16, "-o", output, *more)  # fmt: skip
        assert ran.exit_code == 0, ran.err
        return output

    alone = finetune("alone")
    taught = finetune("taught", "--teacher", teacher, "--distill", 0.7, "--temperature", 2)
    entry = load_checkpoint(taught).info.provenance[-1]
    assert entry["teacher"] == load_checkpoint(teacher).sha256
    assert (entry["options"]["distill"], entry["options"]["temperature"]) == (0.7, 2.0)
    weights = [
        load_checkpoint(path).network.fc.weight for path in (alone, taught, finetune("x", "--teacher", other))
    ]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    ran = slimdeploy_command("finetune", student, "--data", f"folder:{image_folder}", "-o", tmp_path / "y",
                             "--teacher", tmp_path / "none")  # fmt: skip
    assert (ran.exit_code, ran.error) == (2, f"no checkpoint at {tmp_path / 'none'}")


def test_finetune_needs_data_that_fits(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "x.safetensors")
    ran = slimdeploy_command("finetune", checkpoint, "-o", tmp_path / "y")
    assert (ran.exit_code, ran.error) == (
        2,
        f"{checkpoint} doesn't say what data it was trained on: pass --data",
    )
    ran = slimdeploy_command("finetune", checkpoint, "--data", "digits", "-o", tmp_path / "y")
    assert ran.exit_code == 2
    own = f"{checkpoint} (blue, green, red)"
    assert ran.error == f"digits has other classes (0, 1, 2, … 10 in all) than {own}"
    ran = slimdeploy_command("finetune", checkpoint, "--data", f"folder:{image_folder}", "--size", 24,
                             "-o", tmp_path / "y")  # fmt: skip
    assert ran.error == f"--size 24, but {checkpoint} takes 16×16: leave --size out"


def test_images_too_small_for_a_network_are_refused_before_training(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    from PIL import Image

    small = tmp_path / "small"
    shutil.copytree(image_folder, small)
    for file in small.rglob("*.png"):
        Image.open(file).resize((6, 6)).save(file)
    ran = slimdeploy_command(*train_arguments(small, tmp_path / "net"))
    assert (ran.exit_code, ran.error) == (2, "images of 6×6 are too small: the minimum is 8")


def test_nothing_is_replaced_unasked(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "net.safetensors"
    output.write_text("precious")
    ran = slimdeploy_command(*train_arguments(image_folder, output))
    assert ran.exit_code == 2
    assert ran.error == f"{output} exists: pass --force to replace it, or another --output"
    assert output.read_text() == "precious"
    ran = slimdeploy_command(*train_arguments(image_folder, output, "--resume"))
    assert ran.exit_code == 2, "there is nothing to resume, so this would start again"
    assert slimdeploy_command(*train_arguments(image_folder, output, "--force", epochs=0)).exit_code == 0
    load_checkpoint(output)
    ran = slimdeploy_command(*train_arguments(image_folder, tmp_path))
    assert (ran.exit_code, ran.error) == (2, f"{tmp_path} is a folder: name a file with --output")


def test_data_and_device_errors_are_one_line(slimdeploy_command: Callable, tmp_path: Path) -> None:
    ran = slimdeploy_command(*train_arguments(tmp_path / "nowhere", tmp_path / "net"))
    assert ran.exit_code == 2
    assert ran.error.startswith(f"no folder {tmp_path}/nowhere/train: expected")
    ran = slimdeploy_command("train", "--data", "digits", "--limit", 0, "-o", tmp_path / "net")
    assert (ran.exit_code, ran.error) == (2, "--limit must be at least 1, not 0")
    if not torch.cuda.is_available():
        ran = slimdeploy_command("train", "--data", "digits", "--device", "cuda", "-o", tmp_path / "net")
        assert (ran.exit_code, ran.error) == (2, "--device cuda: torch sees no CUDA GPU here")


def test_one_image_is_too_few_to_train_on() -> None:
    train, validation = learnable_split(2), learnable_split(1, seed=1)
    data = Dataset(CLASSES, train, validation, PREPROCESSING, validation)
    with pytest.raises(SlimdeployError, match=r"^1 image is left for training, but BN needs 2: "):
        training_data(data, TrainOptions(limit=1))
    assert len(training_data(data, TrainOptions(limit=2)).train) == 2
