"""The options of `export` for building a TensorRT engine, one for each field of EngineOptions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from slimdeploy.toolchain.export.engine_options import HARDWARE_LEVELS, EngineOptions, parse_batch

# Field of EngineOptions -> its help text, and the settings of the option.
_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch": (
        "Engine: batch sizes, or one number for all three.",
        {"metavar": "MIN,OPT,MAX", "default": "1", "show_default": True},
    ),
    "workspace_mb": (
        "Engine: maximum workspace memory, MiB. [default: all]",
        {"type": click.IntRange(min=1)},
    ),
    "optimization_level": (
        "Engine: builder optimization level; 0 builds fastest, 5 searches longest. [default: 3]",
        {"type": click.IntRange(0, 5)},
    ),
    "tf32": ("Engine: allow TF32 in FP32 layers.", {"is_flag": True}),
    "dla": ("Engine: index of the DLA core to build for.", {"type": click.IntRange(min=0)}),
    "version_compatible": (
        "Engine: can be loaded by later TensorRT versions of the same major version.",
        {"is_flag": True},
    ),
    "hardware_compatible": (
        "Engine: GPUs that can run it: Ampere and later, or the same compute capability.",
        {"type": click.Choice(list(HARDWARE_LEVELS))},
    ),
}


ENGINE_OPTION_NAMES = [field.name for field in fields(EngineOptions)]


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: add the options. The function receives them as one argument, `engine: EngineOptions`."""
    names = ENGINE_OPTION_NAMES

    def wrapped(**arguments: Any) -> Any:
        chosen = {name: arguments.pop(name) for name in names}
        chosen["batch"] = parse_batch(chosen["batch"])
        return function(engine=EngineOptions(**chosen), **arguments)

    wrapped.__doc__ = function.__doc__
    wrapped.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: Callable[..., Any] = wrapped
    for name in reversed(names):
        text, settings = _OPTIONS[name]
        decorated = click.option("--" + name.replace("_", "-"), help=text, **settings)(decorated)
    return decorated
