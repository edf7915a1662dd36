"""A teacher in the loss: by hand, and what can't teach."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import PREPROCESSING, model_info, random_images, random_network, write_checkpoint

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.checkpoint import save_checkpoint
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.training.distillation import Teacher, distillation_loss, load_teacher
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.step import Objective

SPEC = build_graph("tiny", stem="cifar", classes=3)
STUDENT = model_info(SPEC)


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    taught = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    own, wanted = torch.softmax(logits / 2, 1), torch.softmax(taught / 2, 1)
    divergence = (wanted * (wanted / own).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, taught, 2.0), 4 * divergence)
    assert float(distillation_loss(taught, taught, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_label_and_teacher_share_the_loss() -> None:
    teacher = Teacher(random_network(SPEC, seed=1), PREPROCESSING, "")
    images, labels = random_images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    logits = random_network(SPEC)(images)
    taught = teacher.network(images)
    of_labels = F.cross_entropy(logits, labels, label_smoothing=0.1)
    for share in (0.25, 1.0):
        options = TrainOptions(teacher="x", distill=share, temperature=3.0, label_smoothing=0.1)
        found = Objective(options, teacher, PREPROCESSING)(logits, images, labels)
        expected = (1 - share) * of_labels + share * distillation_loss(logits, taught, 3.0)
        torch.testing.assert_close(found, expected)


def test_the_teacher_sees_images_as_it_was_trained_to() -> None:
    own = Preprocessing(16, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    teacher = Teacher(random_network(SPEC), own, "")
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def normalised(by: Preprocessing) -> torch.Tensor:
        mean, std = (torch.tensor(v)[:, None, None] for v in (by.mean, by.std))
        return (pixels - mean) / std

    found = teacher.logits(normalised(PREPROCESSING), PREPROCESSING)
    torch.testing.assert_close(found, teacher.network(normalised(own)), atol=1e-5, rtol=1e-5)
    assert not found.requires_grad


def test_who_cannot_teach(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "teacher.safetensors")
    assert load_teacher(path, STUDENT, device="cpu").preprocessing == PREPROCESSING
    other = replace(STUDENT, class_names=("a", "b", "c"))
    message = f"the teacher {path} has other classes (blue, green, red) than the data (a, b, c)"
    with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}$"):
        load_teacher(path, other, device="cpu")
    larger = replace(STUDENT, preprocessing=replace(PREPROCESSING, size=24))
    message = f"the teacher {path} takes 16×16, the data is 24×24"
    with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}$"):
        load_teacher(path, larger, device="cpu")
    with pytest.raises(SlimdeployError, match=r"^no checkpoint at "):
        load_teacher(tmp_path / "none", STUDENT, device="cpu")


def test_a_student_can_be_narrower_than_its_teacher(tmp_path: Path) -> None:
    path = tmp_path / "deep.safetensors"
    deep = random_network(build_graph("tiny-deep", stem="cifar", classes=3))
    save_checkpoint(path, deep, model_info(deep.graph))
    teacher = load_teacher(path, STUDENT, device="cpu")
    assert not teacher.network.training
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert teacher.logits(random_images(2), PREPROCESSING).shape == (2, 3)
