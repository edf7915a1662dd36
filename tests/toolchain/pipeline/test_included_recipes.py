"""The recipes that come along."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slimdeploy.toolchain.pipeline.recipe import find_recipe, load_recipe
from slimdeploy.toolchain.recipes import DEFAULT, NAMES
from slimdeploy.toolchain.training.options import FINETUNE_LR, WEIGHTS_LR


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_that_comes_along_is_valid(name: str) -> None:
    recipe = load_recipe(find_recipe(name))
    assert recipe.name == name
    assert recipe.finetune.sparsity == 0
    dense = {"cifar10-resnet18": "whose report is of a dense one", "own-model": "which isn't trained here"}
    assert recipe.train.is_sparse != (recipe.name in dense)
    assert recipe.finetune.epochs > 0


def test_the_recipes_promised_are_there() -> None:
    assert {"digits", "cifar10-resnet50", "cifar10-resnet18", "folder", "own-model"} <= set(NAMES)
    digits = load_recipe(find_recipe(DEFAULT))
    assert (digits.data.name, digits.network.arch, digits.prune.ratio) == ("digits", "resnet50", 0.9)


def test_a_recipe_that_comes_along_is_copied_to_start_from(
    slimdeploy_command: Callable, tmp_path: Path
) -> None:
    copy = tmp_path / "my.toml"
    assert slimdeploy_command("run", "folder", "--copy", copy).exit_code == 0
    assert load_recipe(find_recipe(str(copy))).data == load_recipe(find_recipe("folder")).data
    again = slimdeploy_command("run", "digits", "--copy", copy)
    assert (again.exit_code, again.err) == (2, f"slimdeploy: {copy} exists: name another file\n")


def test_the_resnet18_report_s_settings() -> None:
    recipe = load_recipe(find_recipe("cifar10-resnet18"))
    train = recipe.train
    assert (train.lr, train.momentum, train.weight_decay, train.batch_size) == (0.1, 0.9, 5e-4, 128)
    assert (train.schedule, train.step_epochs, train.epochs) == ("step", 30, 200)
    assert (train.patience, train.validation) == (20, 0.2)
    assert (recipe.network.arch, recipe.data.name) == ("resnet18", "cifar10")
    assert not train.is_sparse


def test_the_reference_s_settings() -> None:
    recipe = load_recipe(find_recipe("cifar10-resnet50"))
    assert (recipe.network.arch, recipe.network.stem) == ("resnet50", "cifar-pool")
    assert (recipe.train.sparsity, recipe.train.epochs) == (1e-4, 20)
    assert recipe.compare_ratios == (0.5,)
    assert (recipe.prune.ratio, recipe.finetune.lr, recipe.finetune.epochs) == (0.9, 1e-3, 20)


def test_weights_bring_a_gentle_rate(tmp_path: Path) -> None:
    recipe = load_recipe(find_recipe("own-model"))
    assert (recipe.train.lr, recipe.finetune.lr) == (WEIGHTS_LR, FINETUNE_LR)
    assert recipe.finetune.augmentations.resized_crop == 0.08
    assert str(recipe.network) == "weights.ckpt"
    assert load_recipe(find_recipe("own-model"), ("train.lr=0.1",)).train.lr == 0.1
