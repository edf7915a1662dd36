"""Options with one number for each channel: `--mean 0.485 0.456 0.406`, or `--mean 0.13` for gray images."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

MOST = 3


class ChannelValues(click.ParamType):
    """Numbers in one word, separated by spaces, as `joined` makes it."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        words = str(value).split()
        if len(words) not in (1, MOST) or not all(map(_is_number, words)):
            self.fail(f"{value!r} is not three numbers, or one for gray images.", param, ctx)
        return tuple(map(float, words))


def joined(arguments: list[str], options: Collection[str]) -> list[str]:
    """The words of a command line, with the numbers after each of `options` in one word: an option of click
    takes a fixed number of words.
    """
    words, found = list(arguments), []
    while words:
        word = words.pop(0)
        found.append(word)
        name, equals, value = word.partition("=")
        if name not in options:
            continue
        numbers = [value] if equals else []
        while words and len(numbers) < MOST and _is_number(words[0]):
            numbers.append(words.pop(0))
        if equals:
            found[-1] = f"{name}={' '.join(numbers)}"
        elif numbers:
            found.append(" ".join(numbers))
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
