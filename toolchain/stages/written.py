"""A result that was written as a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar


class Result(Protocol):
    """What a function of the library gives back."""

    def to_json(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Written(Generic[R]):
    """`result`, whose network is in the file `checkpoint`. Processes that didn't write have no `sha256`."""

    checkpoint: Path
    sha256: str
    result: R

    def to_json(self) -> dict[str, Any]:
        return {"checkpoint": str(self.checkpoint), "sha256": self.sha256, **self.result.to_json()}
