"""Fixtures of the tests that need a GPU."""

from slimdeploy.tests.small_network import models, small_batch, small_checkpoint

__all__ = ["models", "small_batch", "small_checkpoint"]
