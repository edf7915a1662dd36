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
    ExprKeyword,
    Extension,
    Function,
    GriffeLoader,
    Parameter,
    ParameterKind,
    Parameters,
)

SECTION = "Keyword Args:"
DECLARED = "option"


class Declared(Extension):
    """Loaded by mkdocstrings, see mkdocs.yml."""

    def on_attribute(self, *, attr: Attribute, **_: Any) -> None:
        """A field made by `option(default, help)`."""
        _declare(attr)

    def on_function(self, *, func: Function, loader: GriffeLoader, **_: Any) -> None:
        """A function under one or more `@takes(kind, defaults, into=parameter)`, the lowest first."""
        for decorator in reversed(func.decorators):
            call = decorator.value
            if isinstance(call, ExprCall) and str(call.function) == "takes":
                given = [one for one in call.arguments if not isinstance(one, ExprKeyword)]
                named = {one.name: one.value for one in call.arguments if isinstance(one, ExprKeyword)}
                kind = loader.modules_collection[given[0].canonical_path]  # type: ignore[union-attr]
                into = ast.literal_eval(str(named.get("into", "'options'")))
                _take(func, kind, _entries(given[1]) if given[1:] else {}, into)


def _declare(attribute: Attribute) -> None:
    if isinstance(attribute.value, ExprCall) and str(attribute.value.function) == "option":
        default, text = attribute.value.arguments[:2]
        attribute.value = default
        attribute.docstring = Docstring(ast.literal_eval(str(text)), parent=attribute)
        attribute.labels.add(DECLARED)


def _entries(defaults: str | Expr) -> dict[str, str | Expr]:
    assert isinstance(defaults, ExprDict)
    return {
        ast.literal_eval(str(key)): value for key, value in zip(defaults.keys, defaults.values, strict=True)
    }


def _take(function: Function, kind: Class, defaults: dict[str, str | Expr], into: str) -> None:
    """What `toolchain/library/keywords.py` does when the function is imported."""
    fields = _fields(kind)
    function.parameters = Parameters(
        *(parameter for parameter in function.parameters if parameter.name != into),
        *(_keyword(field.name, field.annotation, defaults.get(field.name, field.value)) for field in fields),
        _keyword(into, f"{kind.name} | None", "None"),
    )
    lines = [f"    {field.name}: {field.docstring.value}" for field in fields if field.docstring]
    lines.append(f"    {into}: The {len(lines)} options above as one {kind.name}, instead of them.")
    text = function.docstring.value if function.docstring else ""
    section = [] if SECTION in text else ["", SECTION]
    function.docstring = Docstring("\n".join([text, *section, *lines]), parent=function)


def _fields(kind: Class) -> list[Attribute]:
    """The fields that a user sets, inherited ones first: the declared ones, or all where none is declared."""
    found = {
        field.name: field
        for one in (*reversed(kind.mro()), kind)
        for field in one.attributes.values()
        if "instance-attribute" in field.labels
    }
    for field in found.values():
        _declare(field)
    return [f for f in found.values() if DECLARED in f.labels] or list(found.values())


def _keyword(name: str, annotation: str | Expr | None, default: str | Expr | None) -> Parameter:
    return Parameter(name, annotation=annotation, kind=ParameterKind.keyword_only, default=default)
