from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.sweep import choice
from slimdeploy.toolchain.sweep.choice import pareto_front, pick, why_none


def parse_conditions(texts):
    return choice.parse_conditions(texts, [1, 64])


def row(name, accuracy, ms, *, params=1000, ms64=None, speedup=2.0):
    latency = [{"batch": 1, "p50_ms": ms, "speedup": speedup}]
    latency += [{"batch": 64, "p50_ms": ms64, "speedup": 3.0}] if ms64 else []
    return {
        "name": name,
        "accuracy": {"validation": accuracy},
        "latency": latency,
        "params": params,
        "macs": 10 * params,
    }


ROWS = [row("big", 0.95, 4.0), row("middle", 0.93, 1.0), row("beaten", 0.92, 2.0), row("small", 0.8, 0.5)]


def names(rows):
    return [found["name"] for found in rows]


def test_the_front_is_what_no_other_trial_beats():
    assert names(pareto_front(ROWS)) == ["small", "middle", "big"]
    assert names(pareto_front([])) == []


def test_of_equal_trials_the_first_is_on_the_front():
    assert names(pareto_front([row("a", 0.5, 1), row("b", 0.5, 1), row("c", 0.5, 2)])) == ["a"]


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.sampled_from([1, 2, 3])), min_size=1))
def test_the_front_holds_for_any_trials(figures):
    rows = [row(str(i), accuracy, ms) for i, (accuracy, ms) in enumerate(figures)]
    front = pareto_front(rows)

    def beats(one, other):
        (a, t), (b, u) = ((r["accuracy"]["validation"], r["latency"][0]["p50_ms"]) for r in (one, other))
        return a >= b and t <= u and (a, t) != (b, u)

    assert front
    for own in front:
        assert not any(beats(other, own) for other in rows)
    for other in rows:
        equal = [r for r in front if r["accuracy"] == other["accuracy"] and r["latency"] == other["latency"]]
        assert equal or any(beats(own, other) for own in front)


@pytest.mark.parametrize(
    ("conditions", "name"),
    [
        (["latency<=1ms"], "middle"),
        (["latency<1000us"], "small"),
        (["latency<=0.004s"], "big"),
        (["accuracy>=90%"], "middle"),  # the fastest of those
        (["accuracy>=0.94"], "big"),
        (["latency <= 2 ms, accuracy >= 92%"], "middle"),
        (["latency<=2ms", "accuracy<93%"], "beaten"),
        (["params<=1k"], "big"),
        (["macs<=10k,speedup>=2x"], "big"),
    ],
)  # fmt: skip
def test_the_best_that_meets_the_conditions(conditions, name):
    found = pick(ROWS, parse_conditions(conditions))
    assert found is not None
    assert found["name"] == name


def test_latency_at_another_batch_size():
    rows = [row("a", 0.9, 1, ms64=50), row("b", 0.8, 2, ms64=30)]
    assert pick(rows, parse_conditions(["latency@64<=40ms"]))["name"] == "b"
    assert pick(rows, parse_conditions(["speedup@64>=3"]))["name"] == "a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency", "write it as 'latency<=0.8ms'"),
        ("latency=1ms", "write it as"),
        ("", "write it as"),
        ("latency<=1ms,", "write it as"),
        (
            "latncy<=1ms",
            "no metric latncy; known: latency, accuracy, speedup, params, macs. Did you mean 'latency'?",
        ),
        ("latency<=1", "the unit of latency is us or ms or s"),
        ("accuracy>=90pp", "the unit of accuracy is none or %"),
        ("accuracy@64>=90%", "accuracy does not depend on the batch size: remove @64"),
        ("latency@8<=1ms", "the recipe measures batch 1, 64, not 8"),
        ("params<1.2.3M", "1.2.3 is not a number"),
        ("accuracy>=90", "an accuracy is at most 1: write 90% for percent"),
        ("accuracy<200%", "an accuracy is at most 100%"),
    ],
)
def test_bad_conditions_are_one_line(text, message):
    with pytest.raises(SlimdeployError) as error:
        parse_conditions([text])
    assert message in str(error.value)
    assert str(error.value).startswith("conditions ")


def test_why_none_is_picked():
    few = parse_conditions(["latency<=400us"])
    assert pick(ROWS, few) is None
    assert why_none(ROWS, few) == "no trial has latency<=400us: the closest, small, has 500 us"
    high = parse_conditions(["accuracy>=99%"])
    assert why_none(ROWS, high) == "no trial has accuracy>=99%: the closest, big, has 95 %"
    both = parse_conditions(["accuracy>=95%,latency<1ms"])
    assert pick(ROWS, both) is None
    assert why_none(ROWS, both) == "no trial has accuracy>=95% and latency<1ms together"
