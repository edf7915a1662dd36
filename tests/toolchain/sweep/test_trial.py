"""The folder of a training that several points share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tiny_recipe import recipe_text

from slimdeploy.toolchain.pipeline.recipe import load_recipe
from slimdeploy.toolchain.sweep.trial import training_name


def test_trainings_are_the_same_if_their_teachers_contents_are(tmp_path: Path, image_folder: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(recipe_text(image_folder))
    recipe = load_recipe(path)
    for name, content in (("here", b"teacher"), ("elsewhere", b"teacher"), ("other", b"another")):
        (tmp_path / name).write_bytes(content)

    def name(teacher: str) -> str:
        return training_name(replace(recipe, train=replace(recipe.train, teacher=str(tmp_path / teacher))))

    assert name("here") == name("elsewhere")
    assert name("here") != name("other")
