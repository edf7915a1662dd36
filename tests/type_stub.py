"""`__init__.pyi`: names and signatures of the package for type checkers and editors.

    python tests/type_stub.py

writes it again; a test compares it with the functions.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import slimdeploy

STUB = Path(slimdeploy.__file__).with_suffix(".pyi")
HEAD = '"""Names and signatures of the package. Written by tests/type_stub.py."""\n'


def stub() -> str:
    """The text of the stub."""
    imports, functions = set[str](), list[str]()
    for name, module in sorted(slimdeploy._WHERE.items(), key=lambda pair: pair[::-1]):
        value = getattr(slimdeploy, name)
        if inspect.isfunction(value):
            imports |= set(_imports(value))
            functions.append(_function(value))
        else:
            imports.add(f"from {module} import {name} as {name}")
    imports -= {line.rpartition(" as ")[0] for line in imports}  # of an exported name
    origins = [line.rpartition(" ")[2] for line in imports]
    assert len(origins) == len(set(origins)), f"one name for two things: {sorted(imports)}"
    return "\n".join([HEAD, *sorted(imports, key=_order), "\n__version__: str\n", *functions]) + "\n"


def _order(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line


def _function(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    lines, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            lines.append("*")
            keyword_only = True
        lines.append(f"{parameter.name}: {_text(parameter.annotation)}{_default(parameter)}")
    inside = "".join(f"    {line},\n" for line in lines)
    return f"def {function.__name__}(\n{inside}) -> {_text(signature.return_annotation)}: ..."


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    if parameter.default is None or type(parameter.default) in (bool, int, float, str):
        text = repr(parameter.default).replace("'", '"')
        return f" = {text}"
    return " = ..."


def _text(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return str(text).replace("typing.", "")


def _imports(function: Callable[..., Any]) -> Iterator[str]:
    """Imports of the names in the annotations of `function`."""
    known = _known(function.__module__)
    signature = inspect.signature(function)
    annotations = [p.annotation for p in signature.parameters.values()] + [signature.return_annotation]
    for annotation in annotations:
        for node in ast.walk(ast.parse(_text(annotation))):
            if isinstance(node, ast.Name) and not hasattr(builtins, node.id):
                yield known.get(node.id, f"import {node.id}")


def _known(module: str) -> dict[str, str]:
    """Name -> its import, of all names that a module imports or defines."""
    tree, found = ast.parse(inspect.getsource(importlib.import_module(module))), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name: f"from {node.module} import {alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name: f"import {alias.name}" for alias in node.names}
    own = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    own += [
        target.id for node in tree.body if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name)
    ]  # fmt: skip
    return found | {name: f"from {module} import {name}" for name in own}


if __name__ == "__main__":
    STUB.write_text(stub())
