"""Options of a sweep."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from slimdeploy.toolchain.declared import check_declared, option

SAMPLERS = ("tpe", "nsga2")


@dataclass(frozen=True)
class SweepOptions:
    """How to choose the points, and the storage shared by the workers. `trials` None runs the whole grid."""

    trials: int | None = option(
        None,
        "Run N trials instead of the whole grid, chosen by a sampler that optimises accuracy and latency. "
        "The ratio may take any value between the smallest and the largest given.",
        least=1,
        metavar="N",
    )
    sampler: str = option("tpe", "Sampler for trials.", choices=SAMPLERS)
    storage: str = option(
        "",
        "Database shared by all workers, e.g. postgresql+psycopg://USER:PASSWORD@HOST/DATABASE.",
        metavar="URL",
        unset="a SQLite file in the folder",
    )
    study: str = option(
        "", "Name of the study in the storage.", metavar="NAME", unset="the recipe's, and the sampler's"
    )
    heartbeat: int = option(
        30,
        "Interval of the workers' heartbeat; after three missed heartbeats their trials are repeated.",
        least=1,
        metavar="SECONDS",
    )
    device: str = "cpu"
    threads: int | None = None
    started: float = field(default_factory=time.time)
    """Trials that failed before this time are tried again; those that fail later are not."""

    def __post_init__(self) -> None:
        check_declared(self)

    @property
    def method(self) -> str:
        """`grid`, or the sampler's name."""
        return "grid" if self.trials is None else self.sampler

    def named(self, recipe: str, folder: Path) -> SweepOptions:
        """The options with default storage and study for a sweep of `recipe` in `folder`, where none is
        given.
        """
        study = recipe if self.trials is None else f"{recipe}-{self.sampler}"
        return replace(
            self,
            storage=self.storage or f"sqlite:///{folder.resolve() / 'study.db'}",
            study=self.study or study,
        )
