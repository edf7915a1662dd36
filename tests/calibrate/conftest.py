"""The examples are a module of their own, importable by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from calibrate_examples import CHANNELS, Example, make_example


@pytest.fixture(scope="session", params=list(CHANNELS))
def example(request: pytest.FixtureRequest) -> Example:
    """Each architecture in turn."""
    return make_example(request.param)


@pytest.fixture(scope="session")
def bottleneck() -> Example:
    return make_example("resnet50")
