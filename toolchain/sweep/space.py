"""The space of a sweep: λ of the sparse training, pruning ratio and alignment."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.pipeline.recipe import Recipe

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Point:
    """One combination of the varied values."""

    sparsity: float
    ratio: float
    align: int

    @property
    def name(self) -> str:
        """Name of its folder: always the same for the same point."""
        return f"sparsity-{self.sparsity:.12g}_ratio-{self.ratio:.12g}_align-{self.align}"

    def describe(self) -> str:
        return f"λ {self.sparsity:g}, ratio {self.ratio:g}, align {self.align}"

    def recipe(self, base: Recipe) -> Recipe:
        """`base` with the values of this point; raises SlimdeployError for a value out of range."""
        return replace(
            base,
            train=replace(base.train, sparsity=self.sparsity),
            prune=replace(base.prune.at_ratio(self.ratio), align=self.align),
            compare_ratios=(),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Space:
    """The values of each parameter, in the given order."""

    sparsity: tuple[float, ...]
    ratio: tuple[float, ...]
    align: tuple[int, ...]

    def points(self) -> list[Point]:
        """All combinations. λ changes fastest, so that workers that start together train different networks
        instead of waiting for the same one.
        """
        return [Point(s, r, a) for r in self.ratio for a in self.align for s in self.sparsity]

    def including(self, points: Iterable[Point]) -> Space:
        """The space with the values of `points` added, in increasing order."""
        found = [*self.points(), *points]
        return Space(
            tuple(sorted({point.sparsity for point in found})),
            tuple(sorted({point.ratio for point in found})),
            tuple(sorted({point.align for point in found})),
        )

    def to_json(self) -> dict[str, Any]:
        return {name: list(values) for name, values in asdict(self).items()}


def read_space(recipe: Recipe, *, sparsity: str | None, ratio: str | None, align: str | None) -> Space:
    """The space of comma-separated lists; parameters that are not given have the value of `recipe`.

    Raises SlimdeployError for an invalid list, and for values that the recipe can't have.
    """
    if not (sparsity or ratio or align):
        raise SlimdeployError(
            "nothing to sweep over: give `sparsity`, `ratio` or `align`, such as `ratio` 0.5,0.9"
        )
    if ratio is None and recipe.prune.ratio is None:
        raise SlimdeployError(f"{recipe.name} has no pruning ratio ({recipe.prune.describe()}): give `ratio`")
    steered = recipe.train.sparsity_target is not None
    if sparsity is None and steered:
        raise SlimdeployError(f"{recipe.name} steers λ ({recipe.train.sparsity}): give `sparsity`")
    space = Space(
        _values("sparsity", sparsity, float, 0.0 if steered else float(recipe.train.sparsity)),
        _values("ratio", ratio, float, recipe.prune.ratio or 0.0),
        _values("align", align, int, recipe.prune.alignment),
    )
    for point in space.points():
        point.recipe(recipe)
    return space


def _values(
    option: str, text: str | None, kind: Callable[[str], Number], default: Number
) -> tuple[Number, ...]:
    if text is None:
        return (default,)
    values = []
    for part in text.split(","):
        try:
            values.append(kind(part.strip()))
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise SlimdeployError(
                f"`{option}` {text}: {part.strip()!r} is not {what}; write a list such as "
                f"{'1,8' if kind is int else '0.5,0.9'}"
            ) from None
    return tuple(dict.fromkeys(values))
