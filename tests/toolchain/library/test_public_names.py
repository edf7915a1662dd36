"""What `import slimdeploy` promises: it is light, lazy, typed and documented."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import type_stub

import slimdeploy

NAMES = [name for name in slimdeploy.__all__ if name != "__version__"]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(slimdeploy, name))]

LIGHT = """
import sys, time
before = time.process_time()  # not slowed down by other processes
import slimdeploy
seconds = time.process_time() - before
print(seconds, sorted({"torch", "numpy", "click", "onnx"} & set(sys.modules)))
assert "prune" in dir(slimdeploy)
"""


def test_the_import_is_light(fresh_python: Callable) -> None:
    runs = [fresh_python(LIGHT) for _ in range(3)]
    assert runs[0].exit_code == 0, runs[0].err
    assert all(ran.out.split()[1] == "[]" for ran in runs)
    assert min(float(ran.out.split()[0]) for ran in runs) < 0.05


def test_the_stub_for_type_checkers_has_the_names_and_signatures() -> None:
    assert type_stub.STUB.read_text() == type_stub.stub(), "run `python tests/type_stub.py`"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'slimdeploy' has no attribute 'prunee'"):
        slimdeploy.prunee  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_keyword_only_past_the_subject_typed_and_documented(name: str) -> None:
    function = getattr(slimdeploy, name)
    _, *others = inspect.signature(function).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in others)
    assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values())
    assert "Raises:" in function.__doc__
    for parameter in inspect.signature(function).parameters.values():
        assert f"\n    {parameter.name}: " in inspect.cleandoc(function.__doc__), parameter.name
