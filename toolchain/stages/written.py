"""The result of a library function, written to a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar


class Result(Protocol):
    """A result of the library."""

    def to_json(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Written(Generic[R]):
    """`result`, with its network in the file `checkpoint`. `sha256` is None in processes that didn't
    write.
    """

    checkpoint: Path
    sha256: str
    result: R

    def to_json(self) -> dict[str, Any]:
        return {"checkpoint": str(self.checkpoint), "sha256": self.sha256, **self.result.to_json()}
