"""What training refuses before it starts."""

from __future__ import annotations

import re
from typing import Any

import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.training.options import TrainOptions
from slimdeploy.toolchain.training.precision import resolve_precision
from slimdeploy.toolchain.training.setup import short_run

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"schedule": "one-cycel"}, "unknown schedule 'one-cycel'; known: one-cycle, cosine, step, constant. "
                                "Did you mean 'one-cycle'?"),
    ({"precision": "fp8"}, "unknown precision 'fp8'; known: auto, fp32, bf16, fp16."),
    ({"sparsity_step": "proximate"}, "unknown sparsity step 'proximate'; known: proximal, subgradient. "
                                     "Did you mean 'proximal'?"),
    ({"sparse_layers": "al"}, "unknown sparse layers 'al'; known: prunable, all. Did you mean 'all'?"),
    ({"flip_mode": "alternate"}, "unknown flip mode 'alternate'; known: random, alternating. "
                                 "Did you mean 'alternating'?"),
    ({"augmentation": "imagnet"}, "unknown augmentation 'imagnet'; known: cifar, imagenet. "
                                  "Did you mean 'imagenet'?"),
    ({"crop_pad": 2, "resized_crop": 0.5},
     "crop_pad and resized_crop exclude each other: set one of them to 0"),
    ({"resized_crop": 1.5}, "resized_crop must be at most 1, not 1.5"),
    ({"mixup": -0.1}, "mixup must be at least 0, not -0.1"),
    ({"sparsity": "auto"}, "sparsity must be a number (λ) or auto:SHARE with a share between 0 and "
                           "1, e.g. auto:0.9, not 'auto'"),
    ({"sparsity": "auto:1"}, "sparsity must be a number (λ) or auto:SHARE"),
    ({"sparsity": "auto:nan"}, "sparsity must be a number (λ) or auto:SHARE"),
    ({"sparsity": "otto:0.5"}, "sparsity must be a number (λ) or auto:SHARE"),
    ({"sparsity": "auto:0.9", "sparsity_step": "subgradient"},
     "sparsity auto:0.9 needs sparsity_step proximal: only it makes exact zeros"),
    ({"sparsity": "auto:0.9", "sparse_layers": "all"},
     "sparsity auto:0.9 needs sparse_layers prunable: λ is adjusted by the γ that pruning can remove"),
    ({"sparsity": "auto:0.9", "patience": 3},
     "sparsity auto:0.9 cannot be used with patience: γ reach zero only at the end of the run"),
    ({"sparse_align": 0}, "sparse_align must be at least 1, not 0"),
    ({"cutout": -1}, "cutout must be at least 0, not -1"),
    ({"recalibration_images": -1}, "recalibration_images must be at least 0, not -1"),
    ({"ema": 1.0}, "ema must be from 0 to below 1, not 1"),
    ({"distill": 0.0}, "distill must be a share above 0, up to 1, not 0"),
    ({"distill": 1.5}, "distill must be a share above 0, up to 1, not 1.5"),
    ({"temperature": 1e-300}, "temperature must be at least 0.001, not 1e-300"),
    ({"epochs": -1}, "epochs must be at least 0, not -1"),
    ({"batch_size": 1}, "batch_size must be at least 2, not 1"),
    ({"sparsity": -1e-4}, "sparsity must be at least 0, not -0.0001"),
    ({"crop_pad": -1}, "crop_pad must be at least 0, not -1"),
    ({"step_epochs": 0}, "step_epochs must be at least 1, not 0"),
    ({"weight_decay": -0.1}, "weight_decay must be at least 0, not -0.1"),
    ({"patience": 0}, "patience must be at least 1, not 0"),
    ({"limit": 0}, "limit must be at least 1, not 0"),
    ({"momentum": 1.0}, "momentum must be from 0 to below 1, not 1"),
    ({"label_smoothing": -0.1}, "label_smoothing must be from 0 to below 1, not -0.1"),
    ({"validation": 0.0}, "validation must be a share between 0 and 1, not 0"),
    ({"validation": 1.0}, "validation must be a share between 0 and 1, not 1"),
    ({"lr": 0.0}, "lr must be above 0, not 0"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_values_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SlimdeployError, match=f"^{re.escape(message)}"):
        TrainOptions(**values)


def test_the_share_of_automatic_sparsity() -> None:
    assert TrainOptions(sparsity="auto:0.9").sparsity_target == 0.9
    assert TrainOptions(sparsity="auto:0.9").is_sparse
    assert TrainOptions(sparsity=1e-4).sparsity_target is None
    assert not TrainOptions().is_sparse


def test_fp16_is_for_gpus() -> None:
    assert resolve_precision("fp16", "cuda") == "fp16"
    with pytest.raises(SlimdeployError, match=r"^precision fp16 needs a CUDA GPU: use bf16 or fp32 on the"):
        resolve_precision("fp16", "cpu")


def test_automatic_precision_goes_by_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    flags: set[str] = set()
    monkeypatch.setattr("slimdeploy.toolchain.training.precision._cpu_flags", lambda: flags)
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    flags.add("amx_bf16")
    assert resolve_precision("auto", "cpu") == "bf16"
    assert resolve_precision("fp32", "cpu") == "fp32"


@pytest.mark.parametrize(
    ("options", "images", "message"),
    [
        ({"epochs": 8}, 1300, "warning: 80 steps are too few for a new network at `lr` 0.1: "
                              "use `batch_size` 32 (320 steps) or `epochs` 20"),
        ({"epochs": 1}, 60, "warning: 1 step is too few for a new network at `lr` 0.1: use `epochs` 200"),
        ({"epochs": 20}, 1300, None),
        ({"epochs": 0}, 1300, None),
    ],
)  # fmt: skip
def test_a_run_with_too_few_steps_is_told_what_to_change(
    options: dict[str, Any], images: int, message: str | None
) -> None:
    assert short_run(TrainOptions(**options), images) == message


@pytest.mark.parametrize(
    ("values", "crop"),
    [
        ({}, (4, 0)),
        ({"augmentation": "imagenet"}, (0, 0.08)),
        ({"crop_pad": 2}, (2, 0)),
        ({"resized_crop": 0.25}, (0, 0.25)),
        ({"augmentation": "imagenet", "resized_crop": 0.25}, (0, 0.25)),
        ({"augmentation": "imagenet", "crop_pad": 2}, (2, 0)),
        ({"augmentation": "imagenet", "resized_crop": 0}, (0, 0)),
        ({"crop_pad": 0}, (0, 0)),
    ],
)
def test_one_way_to_crop(values: dict[str, Any], crop: tuple[int, float]) -> None:
    found = TrainOptions(**values).augmentations
    assert (found.pad, found.resized_crop) == crop
