from __future__ import annotations

import copy
import json

import jsonschema
import numpy as np
import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure import compare, results
from slimdeploy.toolchain.measure.changes import change
from slimdeploy.toolchain.measure.guards import failures, parse_guard


def row(model="m.onnx", *, level=10.0, spread=0.1, batch=1, seed=0, accuracy=0.9, peak=100.0):
    """A row whose runs take about `level` ms, in 10 launches of a round."""
    random = np.random.default_rng(seed)
    blocks = [np.abs(random.normal(level, spread, 20)) for _ in range(20)]
    samples = np.concatenate(blocks)
    latency = {"mean": samples.mean(), "p50": np.median(samples), "p99": np.percentile(samples, 99)}
    return {
        "model": model, "sha256": "ab", "remarks": [], "interval_reached": True,
        "backend": "fake-cpu", "precision": "fp32", "batch": batch, "latency_ms": latency,
        "images": 1000, "images_sha256": "12",
        "images_per_second": batch * 1000 / latency["mean"], "accuracy": accuracy,
        "accuracy_ci95": None if accuracy is None else [accuracy - 0.02, accuracy + 0.02],
        "memory_mb": {"file": 10.0, "weights": None, "peak": peak + 50, "peak_above_idle": peak},
        "params": 1000, "macs": 2000, "launches": [2] * 10,
        "samples_ms": [block.tolist() for block in blocks],
    }  # fmt: skip


def result(*rows, cpu="a CPU", **versions):
    quiet = {"before": {"load_average": [0.1, 0, 0]}, "during": {"other_work": 0.01}, "after": {}}
    machine = {"cpu": cpu, "cores": 2, "system": "Linux", "versions": {"python": "3.11", **versions}}
    head = {
        "created": "2026-01-01T00:00:00+00:00",
        "command": "slimdeploy bench",
        "options": {"threads": None},
        "remarks": [],
        "conditions": quiet,
    }
    return {**head, "machine": machine, "rows": list(rows)}


def verdict(text, old, new):
    """Of two models of one run."""
    pair = {"baseline": "old", "model": "new", "batch": 1}
    run = {"rows": [{**old, "model": "old"}, {**new, "model": "new"}], "comparisons": [pair]}
    (one,) = compare.judge_run([parse_guard(text)], run)
    return one["verdict"]


def verdict_between(text, old, new):
    """Of one or several runs and others; with why it can't be judged."""
    (one,) = compare.compare_results(old, new, [parse_guard(text)])["guards"]
    return one["verdict"], one["doubt"]


def busy(run, **conditions):
    return {**run, "conditions": {**run["conditions"], **conditions}}


@pytest.mark.parametrize(
    ("condition", "level", "spread", "expected"),
    [
        ("latency_p50 > 1.05x", 12.0, 0.1, "fails"),
        ("latency_p50 > 1.05x", 10.0, 0.1, "passes"),
        ("latency_p50 > 1.05x", 10.5, 4.0, "undecided"),  # 5 % slower, give or take 20 %
        ("latency_p50 < 0.9x", 8.0, 0.1, "fails"),
        ("images_per_second < 0.95x", 12.0, 0.1, "fails"),
        ("images_per_second < 0.95x", 9.0, 0.1, "passes"),
        ("latency_p99 > 1.1x", 15.0, 0.1, "fails"),
    ],
)
def test_a_condition_is_judged_by_the_interval(condition, level, spread, expected):
    assert verdict(condition, row(), row(level=level, spread=spread, seed=1)) == expected


def test_a_point_above_the_limit_is_not_enough():
    """The median of the new one is 6 % higher, but so noisy that it proves nothing."""
    old, new = row(spread=3.0), row(level=10.6, spread=3.0, seed=5)
    found = change(old, new, "latency_p50")
    assert found.ci95[0] < 1.05 < found.ci95[1]
    assert verdict("latency_p50 > 1.05x", old, new) == "undecided"


def test_numbers_without_an_interval_are_judged_as_they_are():
    assert verdict("memory_peak_above_idle > 1.1x", row(), row(peak=111)) == "fails"
    assert verdict("memory_peak_above_idle > 1.1x", row(), row(peak=110)) == "passes"


def test_accuracy_is_a_difference_in_points():
    old = row(accuracy=0.90)
    assert verdict("accuracy < -0.5pp", old, row(accuracy=0.80)) == "fails"
    assert verdict("accuracy < -0.5pp", old, row(accuracy=0.89)) == "undecided"
    assert verdict("accuracy < -0.5pp", old, row(accuracy=0.95)) == "passes"
    found = change(old, row(accuracy=0.80), "accuracy")
    # Newcombe: both half-widths 0.02, so √(0.02² + 0.02²) either way
    assert found.ci95 == pytest.approx((-0.1 - 0.02828, -0.1 + 0.02828), abs=1e-5)


def test_accuracies_of_one_run_are_judged_by_their_paired_difference():
    """Newcombe's interval of ±2.8 points would leave a loss of 1.0 ± 0.2 undecided."""
    rows = [row("old.onnx", accuracy=0.90), row("new.onnx", accuracy=0.89)]
    compared = {"baseline": "old.onnx", "model": "new.onnx", "batch": 1}
    compared["accuracy_difference"] = {"value": -0.01, "ci95": [-0.012, -0.008]}
    (verdict,) = compare.judge_run(
        [parse_guard("accuracy < -0.5pp")], {"rows": rows, "comparisons": [compared]}
    )
    assert verdict["verdict"] == "fails"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency_p50", "write it as 'latency_p50 > 1.05x'"),
        ("latency_p50 > 1.05", "write it as"),
        ("latency_50 > 1.05x", "no metric latency_50; known: .* Did you mean 'latency_p50'"),
        ("accuracy < 0.99x", "accuracy needs a difference in points"),
        ("latency_p50 > 5pp", "latency_p50 needs a factor"),
        ("latency_p50 > -1x", "a factor is above 0"),
        ("params > 0x", "a factor is above 0"),
    ],
)
def test_a_condition_that_cannot_be_read_says_how(text, message):
    with pytest.raises(SlimdeployError, match=message):
        parse_guard(text)


def test_a_condition_on_what_was_not_measured_is_an_error():
    with pytest.raises(SlimdeployError, match="nothing here has accuracy to compare"):
        verdict("accuracy < -0.5pp", row(accuracy=None), row(accuracy=None))


def test_a_condition_is_undecided_for_a_model_without_its_metric():
    old, new = (result(row("a"), row("b", accuracy=accuracy)) for accuracy in (0.9, None))
    verdicts = compare.compare_results([old], [new], [parse_guard("accuracy < -5pp")])["guards"]
    assert [(one["model"], one["verdict"], one["doubt"]) for one in verdicts] == [
        ("a", "passes", ""),
        ("b", "undecided", "accuracy was not measured for both"),
    ]
    for one in verdicts:
        jsonschema.validate(
            json.loads(json.dumps(one)), {"$ref": "#/$defs/guard", "$defs": results.schema("bench")["$defs"]}
        )


def test_a_condition_needs_every_model_of_the_old_result():
    old, new = result(row("a"), row("b")), result(row("a"), row("c"))
    message = (
        r"^guards need the same models in both results, but b \(fake-cpu, fp32, batch 1\) is only in the"
    )
    with pytest.raises(SlimdeployError, match=message):
        compare.compare_results([old], [new], [parse_guard("params > 1x")])
    assert compare.compare_results([new], [result(*new["rows"], row("d"))], [parse_guard("params > 1x")])


def test_results_are_matched_row_by_row_and_the_rest_is_named():
    old = result(row("a"), row("b"), row("a", batch=64))
    new = result(row("a", level=5, seed=3), row("c"), cpu="another CPU", numpy="2.4")
    found = compare.compare_results([old], [new])
    assert found["only_old"] == [["b", "fake-cpu", "fp32", 1], ["a", "fake-cpu", "fp32", 64]]
    assert found["only_new"] == [["c", "fake-cpu", "fp32", 1]]
    p50 = next(one for one in found["changes"] if one["metric"] == "latency_p50")
    assert p50["value"] == pytest.approx(0.5, abs=0.02)
    assert found["remarks"][:2] == ["cpu differs: a CPU and another CPU", "numpy differs: None and 2.4"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": 364}, ["the test images differ: 1,000 and 364"]),
        ({"images_sha256": "34"}, ["the test images, or their preprocessing, differ: 1,000 in each result"]),
        ({"images_sha256": None}, []),  # an older result
        ({"images": 0, "accuracy": None}, []),
    ],
)
def test_accuracies_of_other_images_are_told_in_one_line(change, said):
    old, new = result(row("a"), row("b")), result(row("a") | change, row("b") | change)
    assert compare.compare_results([old], [new])["remarks"][:-1] == said


def test_results_with_nothing_in_common_are_refused():
    with pytest.raises(SlimdeployError, match="no model in common"):
        compare.compare_results([result(row("a"))], [result(row("b"))])


def test_a_run_again_of_the_same_file_is_no_change():
    """5 % apart is what runs of one file are: with one run a side nothing can be made of it."""
    again = result(row(level=10.8, seed=1))
    assert verdict_between("latency_p50 > 1.05x", [result(row())], [again]) == ("undecided", "")
    assert verdict_between("latency_p50 > 1.05x", [result(row())], [result(row(level=20))])[0] == "fails"
    assert verdict_between("latency_p50 > 1.25x", [result(row())], [again])[0] == "passes"
    found = compare.compare_results([result(row())], [again])
    assert "one run a side says nothing of the scatter between runs" in found["remarks"][-1]


def test_the_scatter_between_runs_is_measured_where_they_are_repeated():
    steady = [result(row(level=level, seed=i)) for i, level in enumerate((10, 10.02, 9.98))]
    slower = [result(row(level=level, seed=i)) for i, level in enumerate((11, 11.02, 10.98), 7)]
    restless = [result(row(level=level, seed=i)) for i, level in enumerate((9, 12, 12.5), 7)]
    assert verdict_between("latency_p50 > 1.05x", steady, slower)[0] == "fails"
    assert verdict_between("latency_p50 > 1.05x", steady, restless)[0] == "undecided"
    found = compare.compare_results(steady, slower)
    assert not any("one run a side" in remark for remark in found["remarks"])
    p50 = next(one for one in found["changes"] if one["metric"] == "latency_p50")
    # By hand: three logs a side, t(4) = 2.776, so ± 2.776 · s · √(2/3), s about 0.002 and 0.0018
    assert p50["value"] == pytest.approx(1.1, abs=0.005)
    assert p50["ci95"][1] - p50["ci95"][0] == pytest.approx(
        2 * 1.1 * 2.776 * 0.0019 * (2 / 3) ** 0.5, rel=0.5
    )


def test_numbers_have_an_interval_too_where_runs_are_repeated():
    old = [result(row(peak=peak)) for peak in (100, 130)]
    new = [result(row(peak=peak)) for peak in (120, 125)]
    assert verdict_between("memory_peak_above_idle > 1.05x", old, new)[0] == "undecided"


def test_one_run_on_a_busy_machine_fails_nothing_and_says_so():
    new = busy(result(row(level=20)), during={"other_work": 1.2})
    new["remarks"], new["rows"][0]["remarks"] = ["the machine was busy"], ["noisy"]
    found = verdict_between("latency_p50 > 1.05x", [result(row())], [new])
    assert found == ("undecided", "the machine was busy in the new run")
    before = busy(result(row()), before={"load_average": [3.0, 0, 0]}, during={})  # as older results tell it
    assert verdict_between("latency_p50 > 1.05x", [before], [new])[1].endswith("in the old and the new run")
    assert verdict_between("macs > 0.5x", [result(row())], [new])[0] == "fails"
    remarks = compare.compare_results([result(row())], [new])["remarks"]
    assert remarks[:2] == ["new: the machine was busy", "new: m.onnx, batch 1: noisy"]


def test_a_result_from_one_process_a_model_can_still_be_compared():
    old = row()
    del old["launches"]
    assert verdict_between("latency_p50 > 1.05x", [result(old)], [result(row(level=20))])[0] == "fails"


def test_repeated_runs_of_different_files_are_refused():
    other = {**row(), "sha256": "cd"}
    with pytest.raises(SlimdeployError, match=r"m\.onnx: the repeated runs measured different files"):
        compare.compare_results([result(row()), result(other)], [result(row())])


def test_failures_name_condition_model_and_interval():
    guards = [parse_guard("latency_p50 > 1.5x"), parse_guard("latency_p50 > 3x")]
    old, new = result(row()), result(row(level=20, seed=1))
    verdicts = compare.compare_results([old], [new], guards)["guards"]
    assert [one["verdict"] for one in verdicts] == ["fails", "passes"]
    said = failures(verdicts)
    assert said.startswith("'latency_p50 > 1.5x' holds for m.onnx at batch 1: 2.0")
    assert "3x" not in said.split(":")[0]
    assert failures(verdicts[1:]) is None


def test_the_order_of_rows_does_not_matter():
    old, new = result(row("a"), row("b", level=3)), result(row("b", level=3), row("a"))
    found = {
        (one["model"], one["metric"]): one["value"]
        for one in compare.compare_results([old], [new])["changes"]
    }
    assert found["a", "latency_p50"] == found["b", "latency_p50"] == 1
    assert len(compare.compare_results([copy.deepcopy(old)], [old])["remarks"]) == 1
