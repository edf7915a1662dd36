"""The remaining work of a study: pure functions of its trials.

All workers see the same trials and come to the same decisions, so there is no coordinator and any worker may
be killed. If two workers queue the same point at the same time, the later trial is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from slimdeploy.toolchain.sweep.space import Point

POINT, WORKER, RESULT, ERROR, SURPLUS = "point", "worker", "result", "error", "surplus"
"""User attributes of a trial: its point, its worker, its result, its error, and whether it was dropped in
favour of another.
"""
LIVE = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
MOST_DEATHS = 3
"""Number of workers that may die at a point before it is given up, because it may be the cause."""


def point_of(trial: FrozenTrial) -> Point | None:
    """None for a trial that a sampler hasn't assigned a point yet."""
    found = trial.user_attrs.get(POINT)
    return Point(**found) if found else None


def gives_way(trial: FrozenTrial, trials: Iterable[FrozenTrial], *, limit: int | None, since: float) -> bool:
    """Whether `trial` is superfluous: another trial has its point, or `limit` trials precede it."""
    before = [other for other in trials if other.number < trial.number]
    if limit is not None and sum(_counts(other, since) for other in before) >= limit:
        return True
    point = point_of(trial)
    if point is None:
        return limit is None  # a grid's trials come only from the queue
    return any(point_of(other) == point for other in before if other.state in LIVE)


def _counts(trial: FrozenTrial, since: float) -> bool:
    """Whether a sampler's trial counts towards the requested number."""
    return trial.state in LIVE or (ERROR in trial.user_attrs and trial.user_attrs[ERROR]["at"] >= since)


def given_up(trials: Sequence[FrozenTrial], *, since: float) -> dict[Point, str]:
    """Point -> reason, for points that after `since` failed with an error, or repeatedly killed their
    workers, and that no worker is processing. Earlier failures may have been fixed.
    """
    errors: dict[Point, str] = {}
    deaths: Counter[Point] = Counter()
    for trial in trials:
        point = point_of(trial)
        if point is None or trial.state != TrialState.FAIL or SURPLUS in trial.user_attrs:
            continue
        if ERROR not in trial.user_attrs:
            deaths[point] += (
                trial.datetime_complete is not None and trial.datetime_complete.timestamp() >= since
            )
        elif trial.user_attrs[ERROR]["at"] >= since:
            errors[point] = trial.user_attrs[ERROR]["message"]
    killers = {p: f"{n} workers died on it" for p, n in deaths.items() if n >= MOST_DEATHS}
    taken = {point_of(trial) for trial in trials if trial.state in LIVE}
    return {point: why for point, why in {**killers, **errors}.items() if point not in taken}


def to_queue(
    points: Sequence[Point] | None, trials: Sequence[FrozenTrial], *, since: float
) -> list[tuple[Point, dict[str, Any]]]:
    """Points that no worker has, and the parameters to queue them with.

    `points`: the whole grid; None with a sampler, where only points of dead workers are queued again.
    """
    taken = {point_of(trial) for trial in trials if trial.state in LIVE}
    hopeless = given_up(trials, since=since)
    left: dict[Point, dict[str, Any]] = {}
    if points is not None:
        left = {point: point.to_json() for point in points}
    else:
        for trial in trials:
            point = point_of(trial)
            failed = trial.state == TrialState.FAIL and not {SURPLUS, ERROR} & trial.user_attrs.keys()
            if point is not None and failed:
                left[point] = trial.params
    return [(p, parameters) for p, parameters in left.items() if p not in taken and p not in hopeless]


def is_open(trials: Sequence[FrozenTrial], *, limit: int | None, since: float) -> bool:
    """Whether a trial is available: a queued one, or a new one of the sampler."""
    if any(trial.state == TrialState.WAITING for trial in trials):
        return True
    return limit is not None and sum(_counts(trial, since) for trial in trials) < limit


def running(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.RUNNING]


def results(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """The results, one row per point, in the order of the trials."""
    rows: dict[str, dict[str, Any]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE and RESULT in trial.user_attrs:
            row = trial.user_attrs[RESULT]
            rows.setdefault(row["name"], {**row, "number": trial.number})
    return list(rows.values())
