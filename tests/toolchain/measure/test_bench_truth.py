"""The harness's own truth: sessions that do a known thing, through real worker processes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import fake_sessions
import jsonschema
import numpy as np
import pytest
from fake_sessions import CLASSES, fake

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.measure.bench import Surroundings, measure
from slimdeploy.toolchain.measure.labelled_images import Images
from slimdeploy.toolchain.measure.options import MeasureOptions
from slimdeploy.toolchain.measure.process import launched
from slimdeploy.toolchain.measure.subjects import Subject
from slimdeploy.toolchain.measure.worker import STAGES
from slimdeploy.toolchain.networks.architectures.resnet import RESNETS, ChannelConfig
from slimdeploy.toolchain.preprocessing import Preprocessing

pytestmark = pytest.mark.xdist_group("bench_truth")  # one worker makes what they share

SCHEMAS = Path(measure.__code__.co_filename).parent / "schemas"
QUICK = MeasureOptions(batches=(1,), seconds=0.2, ci=0.9, launches=2, warm_up_floor_s=0.03)


def numbered_images(wanted: Preprocessing) -> Images:
    """200 images; the first pixel's red holds the class, the second's the image's number."""
    images = np.zeros((200, wanted.size, wanted.size, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = labels = np.arange(200) % len(CLASSES)
    images[:, 0, 1, 0] = np.arange(200)
    return Images(images, labels.astype(np.int64), CLASSES)


def log_medians(row):
    """(launches,) the mean over a launch's rounds of the log of their medians."""
    rounds = [
        math.log(np.median(np.concatenate(pair)))
        for pair in zip(row["samples_ms"][::2], row["samples_ms"][1::2], strict=True)
    ]
    return np.array([np.mean(own) for own in np.split(rounds, np.cumsum(row["launches"])[:-1] // 2)])


def half_width() -> ChannelConfig:
    """A ResNet-18's widths with the inner one of every block halved."""
    full = RESNETS["resnet18"].full_channels()
    return ChannelConfig(full.stem, tuple((inner // 2, out) for inner, out in full.blocks))


@pytest.fixture(scope="module")
def result():
    """One run of them all; `right` is the baseline."""
    subjects = [
        fake("right", sleeps_ms=(4,)),
        fake("slow", sleeps_ms=(8,)),
        fake("bimodal", sleeps_ms=(1, 1, 1, 1, 20)),
        fake("big", load_mb=30),
        fake("leaking", leak_mb=1),
        fake("wrong", wrong_every=4),
        fake("narrow", channels=half_width()),
        fake("gpu", gpu_share=0.5),
    ]
    return measure(subjects, QUICK, Surroundings(images=numbered_images))


@pytest.fixture(scope="module")
def rows(result):
    return {row["model"]: row for row in result["rows"]}


@pytest.fixture(scope="module")
def comparisons(result):
    return {one["model"]: one for one in result["comparisons"]}


def test_the_result_conforms_to_the_schema(result):
    schema = json.loads((SCHEMAS / "bench-1.json").read_text())
    jsonschema.validate(json.loads(json.dumps(result | {"guards": []})), schema)


def test_a_known_sleep_and_one_twice_as_slow_are_measured_as_such(rows, comparisons):
    fast, slow, compared = rows["right"], rows["slow"], comparisons["slow"]
    # A sleep never ends early. How late it ends is the machine's affair, so only the order is sure above.
    assert fast["latency_ms"]["min"] >= 4
    assert slow["latency_ms"]["min"] >= 8
    assert fast["latency_ms"]["p50"] < slow["latency_ms"]["p50"]
    assert fast["images_per_second"] == pytest.approx(1000 / fast["latency_ms"]["mean"])
    assert compared["baseline"] == "right"
    wanted = np.exp(np.mean(log_medians(fast) - log_medians(slow)))
    assert compared["speedup"] == pytest.approx(wanted, rel=1e-4)  # of samples that were rounded
    assert compared["ci95"][0] <= compared["speedup"] <= compared["ci95"][1]


def test_a_bimodal_latency_keeps_both_modes(rows):
    """One run in five takes 20 ms: the median doesn't show it, the tail must, and nothing is trimmed."""
    row = rows["bimodal"]
    samples = np.concatenate([np.array(block) for block in row["samples_ms"]])
    assert len(samples) == row["latency_ms"]["runs"]
    assert 0.05 < (samples >= 20).mean() < 0.45
    assert row["latency_ms"]["p99"] >= 20
    assert row["latency_ms"]["max"] == pytest.approx(samples.max(), abs=1e-4)
    assert row["latency_ms"]["p50"] < 20


def test_a_leak_is_seen_and_said(rows):
    leaking = rows["leaking"]
    last = sum(map(len, leaking["samples_ms"][-leaking["launches"][-1] :]))
    assert leaking["memory_mb"]["growth"] >= 0.9 * last
    assert any("memory grew" in remark for remark in leaking["remarks"])


def test_memory_is_what_the_model_takes_above_an_idle_process(rows):
    assert 29 <= rows["big"]["memory_mb"]["peak_above_idle"] <= 45
    assert not any("memory grew" in remark for remark in rows["big"]["remarks"])
    assert rows["right"]["memory_mb"]["peak_above_idle"] < 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak can only be reset on Linux")
@pytest.mark.parametrize("with_images", [False, True])
def test_memory_for_preparing_the_input_is_not_the_models(with_images):
    """64 images of 256×256: 12 MB of pixels and 48 MB of floats stay, two further copies of these don't."""
    images = np.zeros((64, 256, 256, 3), np.uint8)
    with launched([fake("plain", input_shape=(3, 256, 256))], 64, (0,)) as (worker,):
        if with_images:
            worker.call("use_images", images)
        worker.call("warm_up", 0.0, 0.0)
        used = worker.call("memory")
    assert 60 <= used.peak - used.idle <= 85


def test_accuracy_and_its_paired_difference_come_from_the_same_images(rows, comparisons):
    assert (rows["right"]["accuracy"], rows["wrong"]["accuracy"]) == (1.0, 0.75)
    assert rows["right"]["images"] == 200
    assert len({rows["right"]["images_sha256"], rows["wrong"]["images_sha256"]}) == 1
    assert len(rows["right"]["images_sha256"]) == 64
    assert rows["right"]["loss"] == pytest.approx(math.log(1 + 9 * math.exp(-10)))
    difference = comparisons["wrong"]["accuracy_difference"]
    assert difference["value"] == -0.25
    assert difference["ci95"][0] < -0.25 < difference["ci95"][1] < 0


def test_realised_is_the_speedup_over_the_mac_ratio(rows, comparisons):
    compared = comparisons["narrow"]
    assert compared["mac_ratio"] == rows["right"]["macs"] / rows["narrow"]["macs"] > 1.5
    assert compared["realised"] == compared["speedup"] / compared["mac_ratio"]


def test_a_session_on_a_gpu_tells_its_own_times(rows):
    told = rows["gpu"]["gpu"]
    assert told["gpu_ms"]["p50"] == pytest.approx(0.5)
    assert told["enqueue_ratio"] == pytest.approx(0.5)
    assert told["launch_bound"] is False
    assert (told["copy_in_ms"]["p50"], told["copy_out_ms"]["p50"]) == (0.25, 0.125)
    assert rows["gpu"]["memory_mb"]["device"] == {"plan": 3.0, "workspace": 5.0}
    assert rows["right"]["gpu"] is None


def test_the_stages_make_up_the_whole_way(rows):
    stages = rows["slow"]["stages_ms"]
    assert stages["inference"]["p50"] >= 8
    assert stages["total"]["mean"] == pytest.approx(
        sum(stages[name]["mean"] for name in ("preprocess", "inference", "postprocess"))
    )


def test_stages_are_timed_three_times_however_short_the_time():
    with launched([fake("plain")], 1, (0,)) as (worker,):
        stages = worker.call("stages", 1e-9)
    assert {name: len(samples) for name, samples in stages.items()} == dict.fromkeys(STAGES, 3)


def test_every_round_runs_every_model_twice(result):
    launches = {tuple(row["launches"]) for row in result["rows"]}
    assert len(launches) == 1
    blocks = launches.pop()
    assert len(blocks) >= QUICK.launches
    assert all(number >= 2 and number % 2 == 0 for number in blocks)
    assert all(len(row["samples_ms"]) == sum(blocks) for row in result["rows"])


def test_what_a_process_keeps_is_in_the_interval(tmp_path):
    """Each process has a speed of its own: a hundred runs in one process would never tell."""
    moody = fake("moody", moods_ms=(2, 30), moods_file=tmp_path / "processes")
    options = MeasureOptions(batches=(1,), seconds=0.2, ci=0.9, launches=4, warm_up_floor_s=0.01)
    found = measure([fake("steady", sleeps_ms=(4,)), moody], options, Surroundings())
    moody = found["rows"][1]
    assert (tmp_path / "processes").stat().st_size == len(moody["launches"])  # each in a fresh process
    launches = np.split(
        [np.median(block) for block in moody["samples_ms"]], np.cumsum(moody["launches"])[:-1]
    )
    fast, slow = (np.median(np.concatenate(launches[first::2])) for first in (0, 1))
    assert slow / fast > 3
    assert moody["half_width"] > 0.5
    assert not found["comparisons"][0]["interval_reached"]


def test_accuracy_is_measured_at_the_largest_batch_and_filling_up_is_not_counted():
    options = MeasureOptions(
        batches=(1, 64), seconds=0.1, ci=0.9, launches=2, warm_up_floor_s=0.03
    )  # 200 = 3×64 + 8
    found = measure([fake("wrong", wrong_every=4)], options, Surroundings(images=numbered_images))
    assert [row["batch"] for row in found["rows"]] == [1, 64]
    assert {row["accuracy"] for row in found["rows"]} == {0.75}


def test_an_interval_that_was_not_reached_is_said():
    options = MeasureOptions(batches=(1,), seconds=0.2, ci=1e-6, launches=2, warm_up_floor_s=0.03)
    found = measure([fake("a", sleeps_ms=(1, 2, 3))], options, Surroundings())
    (row,) = found["rows"]
    assert not row["interval_reached"]
    assert any(remark.startswith("noisy") for remark in row["remarks"])


def test_the_same_model_twice_is_told_apart():
    found = measure([fake("same"), fake("same")], QUICK, Surroundings())
    assert [row["model"] for row in found["rows"]] == ["same", "same #2"]
    assert found["comparisons"][0]["mac_ratio"] == 1


def test_a_model_that_does_not_say_how_to_feed_it_is_timed_without_accuracy():
    found = measure([fake("foreign", described=False)], QUICK, Surroundings(images=numbered_images))
    (row,) = found["rows"]
    assert row["accuracy"] is None
    assert row["macs"] is None
    assert row["latency_ms"]["p50"] >= 1


def test_other_classes_than_the_model_knows_are_refused():
    def other(wanted: Preprocessing) -> Images:
        found = numbered_images(wanted)
        return Images(found.images, found.labels, tuple(reversed(CLASSES)))

    with pytest.raises(
        SlimdeployError,
        match=r"^the data has other classes \(j, i, h, … 10 in all\) than first \(a, b, c, … 10 in all\)$",
    ):
        measure([fake("first")], QUICK, Surroundings(images=other))


@pytest.mark.parametrize(
    ("opener", "message"),
    [
        ("open_refused", "^bad: no model at nowhere.onnx$"),
        ("open_broken", "^bad: RuntimeError: two lines$"),
        ("open_unavailable", "^bad: this needs tensorrt, which is not installed: pip install"),
    ],
)
def test_a_model_that_cannot_be_opened_is_one_line(opener, message):
    with pytest.raises(SlimdeployError, match=message):
        measure([Subject("bad", "fake", getattr(fake_sessions, opener))], QUICK, Surroundings())


def test_a_process_that_dies_is_named_with_its_end():
    with pytest.raises(
        SlimdeployError, match=r"^fragile: its process ended during (warm_up|block) \(exit code 7\)$"
    ):
        measure([fake("steady"), fake("fragile", dies_at_run=8)], QUICK, Surroundings())
