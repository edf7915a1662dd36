from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from slimdeploy.calibrate.histogram import histogram
from slimdeploy.calibrate.ranges import Ranges, StaleRanges, images_sha256, load_ranges, save_ranges
from slimdeploy.calibrate.trt8_cache import trt8_cache
from slimdeploy.toolchain.errors import SlimdeployError

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)


@pytest.fixture
def saved(tmp_path):
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    ranges = Ranges(
        "abc",
        images_sha256(IMAGES),
        3,
        {"x": np.abs(values[:5])},
        {"x": histogram(values), "zero": histogram(np.zeros(5, np.float32))},
    )
    save_ranges(tmp_path / "ranges.json", ranges)
    return tmp_path / "ranges.json", ranges


def test_round_trip(saved):
    path, ranges = saved
    read = load_ranges(path, model_sha256="abc", images=IMAGES)
    assert list(read.histograms) == ["x", "zero"]
    np.testing.assert_array_equal(read.widths["x"], ranges.widths["x"], strict=True)
    for name, expected in ranges.histograms.items():
        found = read.histograms[name]
        np.testing.assert_array_equal(found.counts, expected.counts)
        assert vars(found) | {"counts": 0} == vars(expected) | {"counts": 0}


def test_another_model_or_other_images_are_stale(saved):
    path, _ = saved
    with pytest.raises(StaleRanges, match=r"ranges\.json is stale: it belongs to another model"):
        load_ranges(path, model_sha256="abd", images=IMAGES)
    with pytest.raises(StaleRanges, match="stale: it was measured on 3 other images"):
        load_ranges(path, model_sha256="abc", images=IMAGES[:2])
    with pytest.raises(StaleRanges, match="other images"):
        load_ranges(path, model_sha256="abc", images=IMAGES[::-1])


@pytest.mark.parametrize(
    "change", [{"format": 1}, {"bins": 128}, {"tensors": [1]}, {"widths": 1}, {"images": None}]
)
def test_damaged_files(saved, change):
    path, _ = saved
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SlimdeployError, match=r"ranges\.json.*delete it"):
        load_ranges(path, model_sha256="abc", images=IMAGES)


def test_a_changed_number_is_damage_and_a_file_without_a_hash_is_of_an_earlier_version(saved):
    path, _ = saved
    document = json.loads(path.read_text())
    document["tensors"]["x"]["maximum"] *= 2
    path.write_text(json.dumps(document))
    with pytest.raises(SlimdeployError, match=r"ranges\.json is damaged: .*delete it"):
        load_ranges(path, model_sha256="abc", images=IMAGES)
    del document["sha256"]
    path.write_text(json.dumps(document))
    assert load_ranges(path, model_sha256="abc", images=IMAGES).images == 3


def test_not_json(tmp_path):
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(SlimdeployError, match="not a readable file of activation ranges"):
        load_ranges(tmp_path / "r.json", model_sha256="", images=IMAGES)


def test_trt8_cache_as_nvidia_writes_it():
    # `prob: 3c010a14` in NVIDIA's description of the format is a scale of 0.00787593.
    scales = {"images": 0.00787593, "relu.out": 0.1}
    thresholds = {name: 127 * scale for name, scale in scales.items()} | {"dead.out": 0.0}
    header, first, second, dead, end = trt8_cache(thresholds).decode().split("\n")
    assert (header, end) == ("TRT-8502-EntropyCalibration2", "")
    assert first.startswith("images: 3c010a")
    assert struct.unpack(">f", bytes.fromhex(second.removeprefix("relu.out: "))) == pytest.approx((0.1,))
    assert dead == "dead.out: 3f800000"
