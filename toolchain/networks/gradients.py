"""Gradients for functions of the library that need them, whatever the caller has switched off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from slimdeploy.toolchain.errors import SlimdeployError

P = ParamSpec("P")
R = TypeVar("R")


def with_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: gradients are recorded, also inside the caller's `torch.no_grad()`. Raises SlimdeployError
    inside `torch.inference_mode()`, whose tensors can never have gradients.
    """

    @functools.wraps(function)
    def called(*arguments: P.args, **keywords: P.kwargs) -> R:
        if torch.is_inference_mode_enabled():
            raise SlimdeployError("gradients are needed: leave torch.inference_mode() for this call")
        with torch.enable_grad():
            return function(*arguments, **keywords)

    return called
