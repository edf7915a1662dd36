"""Who does what, from trials written by hand."""

from __future__ import annotations

import time

import pytest

optuna = pytest.importorskip("optuna", reason="optuna is not installed: pip install 'slimdeploy[sweep]'")

from optuna.trial import TrialState  # noqa: E402

from slimdeploy.toolchain.sweep import queue  # noqa: E402
from slimdeploy.toolchain.sweep.space import Point  # noqa: E402

A, B, C = Point(0.0, 0.5, 1), Point(1e-4, 0.5, 1), Point(0.0, 0.9, 1)


def trials(*facts):
    """From (state, point, further user attributes), numbered in order."""
    made = []
    for number, (state, point, *rest) in enumerate(facts):
        attributes = ({"point": point.to_json()} if point else {}) | (rest[0] if rest else {})
        values = [0.5, 1.0] if state == TrialState.COMPLETE else None
        trial = optuna.trial.create_trial(state=state, values=values, user_attrs=attributes)
        trial.number = number
        made.append(trial)
    return made


WAITING, RUNNING, COMPLETE, FAIL = (
    TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAIL
)  # fmt: skip


def points_to_queue(grid, found, since=100.0):
    return [point for point, _ in queue.to_queue(grid, found, since=since)]


def error(at):
    return {"error": {"message": "the disk is full", "at": at}}


def test_what_nobody_does_is_queued():
    found = trials((COMPLETE, A), (FAIL, B))
    assert points_to_queue([A, B, C], found) == [B, C]
    assert points_to_queue([A, B, C], []) == [A, B, C]
    assert points_to_queue([A, B], trials((WAITING, A), (RUNNING, B))) == []


def test_an_error_is_tried_again_by_the_next_command_but_not_by_this_one():
    found = trials((FAIL, A, error(at=150)), (FAIL, B, error(at=50)))
    assert points_to_queue([A, B], found, since=100) == [B]
    assert queue.given_up(found, since=100) == {A: "the disk is full"}


def test_a_point_that_kills_its_workers_is_given_up():
    found = trials((FAIL, A), (FAIL, A), (FAIL, A))
    assert points_to_queue([A, B], found) == [B]
    assert queue.given_up(found, since=0) == {A: "3 workers died on it"}
    assert queue.given_up(trials((FAIL, A), (FAIL, A), (FAIL, A), (COMPLETE, A)), since=0) == {}
    assert queue.given_up(found, since=time.time() + 60) == {}, "the next command gives it another chance"


def test_a_sampler_takes_up_only_what_the_dead_left():
    found = trials((FAIL, A), (FAIL, B, {"surplus": True}), (FAIL, C, error(at=0)), (COMPLETE, B))
    assert points_to_queue(None, found) == [A]


def test_of_two_trials_of_one_point_the_later_gives_way():
    found = trials((RUNNING, A), (RUNNING, B), (RUNNING, A))
    assert [queue.gives_way(t, found, limit=None, since=0) for t in found] == [False, False, True]
    found = trials((FAIL, A), (RUNNING, A))
    assert not queue.gives_way(found[1], found, limit=None, since=0)


def test_a_grid_does_nothing_that_was_not_queued():
    (fresh,) = trials((RUNNING, None))
    assert queue.gives_way(fresh, [fresh], limit=None, since=0)
    assert not queue.gives_way(fresh, [fresh], limit=1, since=0)


def test_a_sampler_does_as_many_as_were_asked_for():
    found = trials((COMPLETE, A), (FAIL, B), (FAIL, C, error(at=5)), (RUNNING, None), (RUNNING, None))
    assert [queue.gives_way(t, found, limit=3, since=0) for t in found[3:]] == [False, True]
    assert not queue.is_open(found, limit=3, since=0)
    assert queue.is_open(found, limit=5, since=0)
    assert queue.is_open(found, limit=4, since=10), "an error from before doesn't count"


def test_a_grid_is_open_while_something_waits():
    assert queue.is_open(trials((COMPLETE, A), (WAITING, B)), limit=None, since=0)
    assert not queue.is_open(trials((COMPLETE, A), (RUNNING, B)), limit=None, since=0)


def test_results_are_one_a_point():
    twice = [(COMPLETE, A, {"result": {"name": "a", "n": n}}) for n in (1, 2)]
    rows = [*twice, (COMPLETE, B, {"result": {"name": "b"}}), (RUNNING, C, {"result": {"name": "c"}})]
    assert queue.results(trials(*rows)) == [{"name": "a", "n": 1, "number": 0}, {"name": "b", "number": 2}]
