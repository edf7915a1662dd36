"""griffe extension: options as `toolchain/declared.py` declares them.

The source has `ratio: float | None = option(None, "…")`, and functions with one parameter `options` under
`@takes(PruneOptions)`. The pages show the result: default and help of each field, and a keyword for each.
"""

from __future__ import annotations

import ast
from typing import Any

from griffe import (
    Attribute,
    Class,
    Docstring,
    Expr,
    ExprCall,
    ExprDict,
    Extension,
    Function,
    GriffeLoader,
    Parameter,
    ParameterKind,
    Parameters,
)


class Declared(Extension):
    """Loaded by mkdocstrings, see mkdocs.yml."""

    def on_attribute(self, *, attr: Attribute, **_: Any) -> None:
        """A field made by `option(default, help)`."""
        _declare(attr)

    def on_function(self, *, func: Function, loader: GriffeLoader, **_: Any) -> None:
        """A function under `@takes(kind, defaults)`."""
        for decorator in func.decorators:
            call = decorator.value
            if isinstance(call, ExprCall) and str(call.function) == "takes":
                kind, *defaults = call.arguments
                options = loader.modules_collection[kind.canonical_path]  # type: ignore[union-attr]
                _take(func, options, _entries(defaults[0]) if defaults else {})


def _declare(attribute: Attribute) -> None:
    if isinstance(attribute.value, ExprCall) and str(attribute.value.function) == "option":
        default, text = attribute.value.arguments[:2]
        attribute.value = default
        attribute.docstring = Docstring(ast.literal_eval(str(text)), parent=attribute)


def _entries(defaults: str | Expr) -> dict[str, str | Expr]:
    assert isinstance(defaults, ExprDict)
    return {
        ast.literal_eval(str(key)): value for key, value in zip(defaults.keys, defaults.values, strict=True)
    }


def _take(function: Function, kind: Class, defaults: dict[str, str | Expr]) -> None:
    """What `toolchain/library/keywords.py` does when the function is imported."""
    fields = [field for field in kind.attributes.values() if "instance-attribute" in field.labels]
    for field in fields:
        _declare(field)
    together = f"All of these as one {kind.name}, instead of them."
    function.parameters = Parameters(
        *(parameter for parameter in function.parameters if parameter.name != "options"),
        *(_keyword(field.name, field.annotation, defaults.get(field.name, field.value)) for field in fields),
        _keyword("options", f"{kind.name} | None", "None"),
    )
    lines = [f"    {field.name}: {field.docstring.value}" for field in fields if field.docstring]
    text = [function.docstring.value if function.docstring else "", "", "Keyword Args:", *lines]
    function.docstring = Docstring("\n".join([*text, f"    options: {together}"]), parent=function)


def _keyword(name: str, annotation: str | Expr | None, default: str | Expr | None) -> Parameter:
    return Parameter(name, annotation=annotation, kind=ParameterKind.keyword_only, default=default)
