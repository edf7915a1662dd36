"""What the fake TensorRT's classes share: names and calls that their version doesn't have are refused."""

from __future__ import annotations

from typing import Any

import onnx


class Restricted:
    """Base of the fake classes: members and calls that the version doesn't have are refused."""

    _trt: Any
    _members: dict[str, list[list[str]] | None]
    _name: str

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        self._note(name)
        value = object.__getattribute__(self, name)
        overloads = self._members[name]
        return _checked(value, f"{self._name}.{name}", overloads) if overloads and callable(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self._note(name)
        object.__setattr__(self, name, value)

    def _note(self, name: str) -> None:
        if name not in self._members:
            raise AttributeError(f"TensorRT {self._trt.__version__} has no {self._name}.{name}")
        self._trt._used.add(f"{self._name}.{name}")


def _checked(method: Any, name: str, overloads: list[list[str]]) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        assert any(_fits(parameters, arguments, named) for parameters in overloads), (
            f"{name} takes {overloads}, not {len(arguments)} arguments and {list(named)}"
        )
        return method(*arguments, **named)

    return call


def _fits(parameters: list[str], arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    names = [parameter.rstrip("=") for parameter in parameters]
    given = [*names[: len(arguments)], *named]
    needed = [parameter for parameter in parameters if not parameter.endswith("=")]
    return len(arguments) <= len(names) and set(needed) <= set(given) <= set(names)


class HostMemory(Restricted):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def __bytes__(self) -> bytes:
        return self._content

    @property
    def nbytes(self) -> int:
        return len(self._content)


class Tensor(Restricted):
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value

    @property
    def name(self) -> str:
        return self._value.name

    @property
    def shape(self) -> tuple[int, ...]:
        dims = self._value.type.tensor_type.shape.dim
        return tuple(-1 if dim.dim_param else dim.dim_value for dim in dims)


def new(trt: Any, name: str, *arguments: Any) -> Any:
    """An object that TensorRT itself makes: not a use of the class by name."""
    return trt._classes[name](*arguments)
