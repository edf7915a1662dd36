"""A subject of a measurement: a model on a backend, and how to open it in its own process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slimdeploy.toolchain import artifacts
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.worker import Opener
from slimdeploy.toolchain.runtime.session import BACKENDS, SessionOptions, backend_for, open_session


@dataclass(frozen=True)
class Subject:
    """`model` names it in results, `asked` is the requested backend; `label` is unique."""

    model: str
    asked: str
    opener: Opener
    path: Path | None = None
    modules: tuple[str, ...] = ()
    """Modules imported before the model is loaded, so that their memory counts as idle."""
    label: str = ""
    threads: int | None = None
    """CPU threads of its session; None: the library's default."""


def subjects_for(paths: Sequence[Path], backends: Sequence[str], options: SessionOptions) -> list[Subject]:
    """Every model on every requested backend, in that order.

    Raises SlimdeployError for no backend, a missing file, or one that the backend can't open.
    """
    if not backends:
        raise SlimdeployError("`backends` names no backend")
    subjects = []
    for backend in backends:
        for path in paths:
            module = BACKENDS[backend_for(path, backend)][0]
            if not path.is_file():
                raise artifacts.missing(path, "model")
            opener = functools.partial(open_session, path, backend, options)
            subjects.append(Subject(str(path), backend, opener, path, (module,), threads=options.threads))
    return unique(subjects)


def unique(subjects: Sequence[Subject]) -> list[Subject]:
    """The same subjects with labels: the model's name, its backend if there are several, and a number for
    repetitions.
    """
    several = len({subject.asked for subject in subjects}) > 1
    labelled: list[Subject] = []
    for subject in subjects:
        base = f"{subject.model} ({subject.asked})" if several else subject.model
        count = sum(other.model == subject.model and other.asked == subject.asked for other in labelled)
        label = f"{base} #{count + 1}" if count else base
        labelled.append(replace(subject, label=label))
    return labelled


def compared(subjects: Sequence[Subject]) -> list[tuple[int, int]]:
    """Indices of baseline and model of each comparison. The baseline is the first subject on the same
    backend; for that one, the first of all.
    """
    firsts: dict[str, int] = {}
    pairs = []
    for index, subject in enumerate(subjects):
        first = firsts.setdefault(subject.asked, index)
        if index:
            pairs.append((first if first != index else 0, index))
    return pairs
