"""The teacher's logits in a file: read again only for the same batch, and never something else."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import CLASSES, PREPROCESSING, random_images, random_network, write_checkpoint

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import load_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.training.distillation import Teacher
from slimdeploy.toolchain.training.precision import autocast
from slimdeploy.toolchain.training.teacher_cache import TeacherCache

NETWORK = random_network(build_graph("tiny", stem="cifar", classes=3))


ADVICE = "choose another path, or delete it if it is damaged"


def _never(_: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the teacher was run")


def test_a_batch_is_computed_once(tmp_path: Path) -> None:
    images, wanted = random_images(6), NETWORK(random_images(6))
    first = TeacherCache(tmp_path / "logits", "a")
    torch.testing.assert_close(first.logits(images, NETWORK), wanted, atol=0, rtol=0)
    again = TeacherCache(tmp_path / "logits", "a")
    strided = images.contiguous(memory_format=torch.channels_last)
    for same in (images, images.clone(), strided):
        torch.testing.assert_close(again.logits(same, _never), wanted, atol=0, rtol=0)
    assert str(again) == f"teacher cache {tmp_path / 'logits'}: 3 of 3 batches were read from it"


@pytest.mark.parametrize("change", ["pixel", "order", "size", "type", "teacher", "precision"])
def test_another_batch_is_another_entry(tmp_path: Path, change: str) -> None:
    cache = TeacherCache(tmp_path / "logits", "a")
    images = random_images(6)
    cache.logits(images, NETWORK)
    if change == "pixel":
        images[5, 2, 15, 15] += 1e-6
    elif change == "order":
        images = images.flip(0)
    elif change == "size":
        images = images.reshape(3, 6, 16, 16)
    elif change == "type":
        images = images.half()
    elif change == "teacher":
        cache = TeacherCache(tmp_path / "logits", "b")
    with autocast("bf16" if change == "precision" else "fp32", "cpu"), pytest.raises(AssertionError):
        cache.logits(images, _never)


@pytest.mark.parametrize(
    "damage",
    ["substr(logits, 1, 10)", "NULL", "'text'", "zeroblob(length(logits))", "x'00' || substr(logits, 2)"],
)
def test_damaged_logits_are_computed_again(tmp_path: Path, damage: str) -> None:
    images = random_images(6)
    wanted = TeacherCache(tmp_path / "logits", "a").logits(images, NETWORK)
    with sqlite3.connect(tmp_path / "logits") as connection:
        connection.execute(f"UPDATE batches SET logits = {damage}")
    connection.close()
    cache = TeacherCache(tmp_path / "logits", "a")
    for compute in (NETWORK, _never):
        torch.testing.assert_close(cache.logits(images, compute), wanted, atol=0, rtol=0)
    assert (cache.found, cache.asked) == (1, 2)


def test_half_precision_logits_are_kept_exactly(tmp_path: Path) -> None:
    teacher = Teacher(NETWORK, PREPROCESSING, "a", TeacherCache(tmp_path / "logits", "a"))
    with autocast("bf16", "cpu"):
        plain = Teacher(NETWORK, PREPROCESSING, "a").logits(random_images(6), PREPROCESSING)
        assert plain.dtype == torch.bfloat16
        for _ in range(2):
            kept = teacher.logits(random_images(6), PREPROCESSING)
            torch.testing.assert_close(kept, plain.float(), atol=0, rtol=0)


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("mine, and long enough to be no empty database " * 20)
    study = tmp_path / "study.db"
    with sqlite3.connect(study) as connection:
        connection.execute("CREATE TABLE batches (digest BLOB PRIMARY KEY, logits BLOB)")
    connection.close()
    for path, message in (
        (text, f"cannot use the teacher cache {text} (file is not a database): {ADVICE}"),
        (study, f"{study} is not a teacher cache: choose another path"),
        (tmp_path, f"{tmp_path} is a folder: name a file with teacher_cache"),
        (text / "x", f"cannot make the folder {text}: File exists"),
    ):
        before = path.read_bytes() if path.is_file() else None
        with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}$"):
            TeacherCache(path, "a")
        assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("moment", ["read", "write"])
def test_a_file_that_fails_later_does_not_end_the_training(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "logits"
    cache = TeacherCache(path, "a")
    cache.logits(random_images(6), NETWORK)

    def broken(images: torch.Tensor) -> torch.Tensor:
        path.write_bytes(b"no longer a database " * 500)
        return NETWORK(images)

    if moment == "read":
        broken(random_images(6))
    images = random_images(5)
    for compute in (broken, NETWORK):
        torch.testing.assert_close(cache.logits(images, compute), NETWORK(images), atol=0, rtol=0)
    assert str(cache) == (
        f"teacher cache {path}: 0 of 3 batches were read from it; it was no longer used after an error "
        "(file is not a database)"
    )


FILL = """
import sys, torch
from pathlib import Path
from slimdeploy.toolchain.training.teacher_cache import TeacherCache

cache = TeacherCache(Path(sys.argv[1]), "a")
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 40):
    cache.logits(torch.full((2, 3, 4, 4), float(number)), lambda images: images[:, :, 0, 0])
"""


def test_several_trainings_write_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "logits"
    trainings = [
        subprocess.Popen([sys.executable, "-c", FILL, str(path), str(first)]) for first in (0, 20, 0)
    ]
    assert [training.wait() for training in trainings] == [0, 0, 0]
    cache = TeacherCache(path, "a")
    for number in range(60):
        images = torch.full((2, 3, 4, 4), float(number))
        torch.testing.assert_close(cache.logits(images, _never), images[:, :, 0, 0], atol=0, rtol=0)


def test_finetune_with_a_cache_writes_the_same_network(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path
) -> None:
    teacher = write_checkpoint(tmp_path / "teacher", seed=1)
    student = write_checkpoint(tmp_path / "student")

    def finetune(name: str, *more: object, student: Path = student) -> tuple[torch.Tensor, str]:
        ran = slimdeploy_command("finetune", student, "--data", f"folder:{image_folder}", "--epochs", 2,
                                 "--batch-size", 16, "-o", tmp_path / name, *more)  # fmt: skip
        assert ran.exit_code == 0, ran.err
        return load_checkpoint(tmp_path / name).network.fc.weight, ran.err

    taught = ("--teacher", teacher)
    cached = (*taught, "--teacher-cache", tmp_path / "cache.sqlite")
    plain, _ = finetune("plain", *taught)
    for name, count in (("first", 0), ("second", 6)):
        weight, err = finetune(name, *cached)
        assert torch.equal(weight, plain)
        assert f"teacher cache {tmp_path / 'cache.sqlite'}: {count} of 6 batches were read from it" in err
    _, err = finetune("other", *cached, student=write_checkpoint(tmp_path / "narrow", "tiny-basic"))
    assert "6 of 6 batches" in err  # another student sees the same images
    _, err = finetune("seeded", *cached, "--seed", 1)
    assert "0 of 6 batches" in err
    options = load_checkpoint(tmp_path / "second").info.provenance[-1]["options"]
    assert options == load_checkpoint(tmp_path / "plain").info.provenance[-1]["options"] | {
        "teacher": str(teacher)
    }


@pytest.mark.parametrize("name", ["x", "x.state", "x.history.jsonl", "x.tensorboard"])
def test_a_cache_is_no_file_of_the_run(
    slimdeploy_command: Callable, image_folder: Path, tmp_path: Path, name: str
) -> None:
    student = write_checkpoint(tmp_path / "student")
    ran = slimdeploy_command("finetune", student, "--data", f"folder:{image_folder}", "-o", tmp_path / "x",
                             "--teacher", student, "--teacher-cache", tmp_path / name)  # fmt: skip
    assert ran.exit_code == 2
    assert "are the same file, or one belongs to the other: choose another path" in ran.error


def test_a_cache_needs_a_teacher(slimdeploy_command: Callable, image_folder: Path, tmp_path: Path) -> None:
    student = write_checkpoint(tmp_path / "student")
    common = ("finetune", student, "--data", f"folder:{image_folder}", "-o", tmp_path / "x")
    ran = slimdeploy_command(*common, "--teacher-cache", tmp_path / "cache")
    assert (ran.exit_code, ran.error) == (2, "--teacher-cache needs --teacher")
    ran = slimdeploy_command(*common, "--teacher", student, "--teacher-cache", student)
    assert ran.exit_code == 2
    assert ran.error == f"cannot use the teacher cache {student} (file is not a database): {ADVICE}"
    assert load_checkpoint(student).info.class_names == CLASSES
