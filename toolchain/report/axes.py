"""Scales from values to positions on a drawing, and round numbers for the labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """`low` and `high` extend the range of the data; `write` converts a value to a label."""

    label: str
    write: Callable[[float], str] = lambda value: f"{value:g}"
    log: bool = False
    low: float | None = None
    high: float | None = None
    whole: bool = False
    """Label only whole numbers."""


def ticks(low: float, high: float, *, log: bool = False, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`: 1, 2 or 5 times a power of ten; on a `log` axis powers and
    halves, where there are two of them.
    """
    if log:
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
        inside = [v for v in steps if low <= v * 1.0001 and v <= high * 1.0001]
        if len(inside) > most:
            return [v for v in inside if math.log10(v).is_integer()] or inside[::2]
        if len(inside) >= 2:
            return inside  # otherwise the axis is so short that it is nearly linear
    raw = (high - low) / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(round(i * step, 12)) for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to positions between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool
    whole: bool

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        found = ticks(self.low, self.high, log=self.log)
        return [value for value in found if value.is_integer()] if self.whole else found


def scale(axis: Axis, values: Sequence[float], start: float, end: float) -> Scale:
    """The scale for all `values`, extended as required by the axis."""
    low = min(values) if axis.low is None else min(axis.low, *values)
    high = max(values) if axis.high is None else max(axis.high, *values)
    if low == high:
        low, high = (low / 2, high * 2) if axis.log else (low - 0.5, high + 0.5)
    return Scale(low, high, start, end, axis.log, axis.whole)
