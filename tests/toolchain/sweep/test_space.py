from __future__ import annotations

from pathlib import Path

import pytest

from slimdeploy.tests.toolchain.report import sweep_example
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.pipeline.recipe import find_recipe, load_recipe
from slimdeploy.toolchain.sweep.options import SweepOptions
from slimdeploy.toolchain.sweep.result import sweep_document
from slimdeploy.toolchain.sweep.space import Point, read_space
from slimdeploy.toolchain.sweep.worker import Job

RECIPE = load_recipe(find_recipe("digits"))


def test_all_combinations_with_the_sparsity_changing_fastest():
    space = read_space(RECIPE, sparsity="0, 1e-4", ratio="0.5,0.9", align="1,8")
    points = space.points()
    assert len(points) == len(set(points)) == 8
    assert points[:3] == [Point(0.0, 0.5, 1), Point(1e-4, 0.5, 1), Point(0.0, 0.5, 8)]
    assert len({point.name for point in points}) == 8


def test_what_is_not_given_stays_as_the_recipe_has_it():
    (point, other) = read_space(RECIPE, sparsity=None, ratio="0.5,0.5,0.7", align=None).points()
    assert point == Point(RECIPE.train.sparsity, 0.5, RECIPE.prune.alignment)
    assert other.ratio == 0.7


def test_a_point_changes_the_recipe_where_it_says_and_nowhere_else():
    recipe = Point(1e-5, 0.7, 4).recipe(RECIPE)
    assert (recipe.train.sparsity, recipe.prune.ratio, recipe.prune.align) == (1e-5, 0.7, 4)
    assert recipe.compare_ratios == ()
    assert recipe.train.epochs == RECIPE.train.epochs
    assert (recipe.finetune, recipe.export, recipe.bench) == (RECIPE.finetune, RECIPE.export, RECIPE.bench)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({}, "nothing to sweep over: give sparsity, ratio or align"),
        ({"ratio": "0.5,half"}, "ratio 0.5,half: 'half' is not a number"),
        ({"ratio": "0.5,"}, "ratio 0.5,: '' is not a number"),
        ({"align": "8,1.5"}, "align 8,1.5: '1.5' is not a whole number; write a list such as 1,8"),
        ({"ratio": "0.5,1.5"}, "ratio must be from 0 to below 1, not 1.5"),
        ({"sparsity": "-1"}, "sparsity must be at least 0, not -1"),
        ({"align": "0"}, "align must be at least 1, not 0"),
    ],
)
def test_bad_lists_are_one_line(lists, message):
    with pytest.raises(SlimdeployError) as error:
        read_space(RECIPE, **{"sparsity": None, "ratio": None, "align": None, **lists})
    assert message in str(error.value)


def test_a_recipe_with_another_budget_needs_a_ratio():
    recipe = load_recipe(find_recipe("digits"), ("prune={params = 4e6}",))
    with pytest.raises(SlimdeployError, match=r"digits has no pruning ratio .*: give ratio"):
        read_space(recipe, sparsity="0", ratio=None, align=None)


def test_a_recipe_that_steers_its_sparsity_needs_a_list_of_it():
    recipe = load_recipe(find_recipe("digits"), ("train.sparsity=auto:0.9",))
    with pytest.raises(SlimdeployError, match=r"digits steers λ \(auto:0.9\): give sparsity"):
        read_space(recipe, sparsity=None, ratio="0.9", align=None)
    assert read_space(recipe, sparsity="1e-4", ratio="0.9", align=None).points()[0].sparsity == 1e-4


@pytest.mark.parametrize(("trials", "ratios"), [(None, [0.5, 0.6, 0.7]), (8, [0.6])])
def test_the_space_of_a_grid_has_the_values_of_earlier_calls(trials, ratios):
    """A sampler's space is the range that it chose from."""
    recipe = load_recipe(find_recipe("digits"))
    space = read_space(recipe, sparsity="0,1e-3", ratio="0.6", align="1,8")
    options = SweepOptions(trials=trials).named("digits", Path())
    written = sweep_document(Job(recipe, space, Path(), options), sweep_example.TRIALS, {}, None)
    assert written["space"] == {"sparsity": [0.0, 1e-3], "ratio": ratios, "align": [1, 8]}
