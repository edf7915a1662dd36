"""Latency tables on devices whose truth is known: made-up times that the fit must find again."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.latency import fit as lut_fit
from slimdeploy.toolchain.latency import measure as lut_measure
from slimdeploy.toolchain.latency import networks as lut_networks
from slimdeploy.toolchain.latency.fit import Sample
from slimdeploy.toolchain.latency.measure import LutResult
from slimdeploy.toolchain.latency.table import LatencyTable, ends, load_table, weights_mb
from slimdeploy.toolchain.measure import results
from slimdeploy.toolchain.networks.architectures import build_graph
from slimdeploy.toolchain.networks.channel_groups import channel_groups
from slimdeploy.toolchain.networks.cost import round_up
from slimdeploy.toolchain.networks.cutting import at_widths
from slimdeploy.toolchain.networks.graph import Graph
from slimdeploy.toolchain.networks.layers import convolutions

RESNET18 = build_graph("resnet18")
DEVICE = {
    "cpu": "made up", "cores": 1, "backend": "onnxruntime-cpu", "threads": 1, "batch": 1,
    "versions": {"onnxruntime": "1.31"},
}  # fmt: skip
ALWAYS = 1e6
PROFILING_MS = 0.004
CACHE_MB = 8.0


def true_ms(spec: Graph, size: int) -> tuple[dict[str, float], float]:
    """A device that pads widths to 16 and reads weights beyond 8 MB from memory in every run."""
    layers = convolutions(spec, size)
    streamed = max(0.0, 1 - CACHE_MB / (sum(conv.weights for conv in layers) * 4 / 2**20))
    convs = {}
    for conv in layers:
        wide, out = round_up(conv.in_channels, 16), round_up(conv.out_channels, 16)
        pixels, area = math.prod(conv.out_size), math.prod(conv.kernel)
        macs, weights = wide * out * area * pixels, wide * out * area
        convs[conv.name] = 0.002 + 1e-8 * macs + 1e-7 * pixels * (wide + out) + 1e-7 * streamed * weights
    stem, classifier_in = ends(spec)
    return convs, 0.01 + 1e-4 * stem + 1e-5 * classifier_in


Profile = Callable[[Graph, int], Sample]


@dataclass(frozen=True)
class MadeUp:
    """A backend whose times are computed."""

    profile: Profile
    device: dict[str, Any] = field(default_factory=lambda: DEVICE)
    revisits: bool = True


def measure_table(
    profile: Profile, path: Path, *, seconds: float = ALWAYS, spec: Graph = RESNET18, size: int = 32,
    device: dict[str, Any] = DEVICE,
) -> LutResult:  # fmt: skip
    return lut_measure.measure_table(spec, size, MadeUp(profile, device), path, seconds=seconds)  # type: ignore[arg-type]


def device(*, noise: float = 0.0, disturbed: float = 0.0, seed: int = 0):
    """A profiler of that device: `noise` is the relative deviation of each time, `disturbed` the share of the
    networks that other work makes twice as slow.
    """
    rng = np.random.default_rng(seed)

    def profile(spec: Graph, size: int) -> Sample:
        convs, rest = true_ms(spec, size)
        slow = 2.0 if rng.random() < disturbed else 1.0
        own = {
            name: (ms * rng.lognormal(0, noise) + PROFILING_MS) * slow if noise else ms + PROFILING_MS
            for name, ms in convs.items()
        }
        return Sample(spec, own, rest + PROFILING_MS, (sum(convs.values()) + rest) * slow)

    return profile


def slowed(found: Sample, slow: float) -> Sample:
    """What a machine that takes `slow` times as long measures."""
    convs = {name: ms * slow for name, ms in found.convs_ms.items()}
    return Sample(found.graph, convs, found.rest_ms * slow, found.total_ms * slow)


def stopped(spec: Graph, size: int) -> Sample:
    raise AssertionError("nothing should be measured here")


def errors(table: LatencyTable, count: int = 20) -> np.ndarray:
    """Relative errors on networks that the table hasn't seen."""
    rng, found = random.Random(99), []
    for _ in range(count):
        spec = lut_networks.random_network(RESNET18, rng)
        convs, rest = true_ms(spec, 32)
        found.append(table.network_ms(spec, 32) / (sum(convs.values()) + rest) - 1)
    return np.abs(found)


@pytest.fixture(scope="module")
def exact(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lut") / "table.json"
    measure_table(device(), path)
    return path


def test_the_truth_is_found_again(exact):
    table = load_table(exact)
    assert table.granularity == 16
    assert table.cache_mb == CACHE_MB
    assert errors(table).max() < 1e-3
    assert table.layer_ms == pytest.approx(-PROFILING_MS, rel=0.01)
    convs, _ = true_ms(RESNET18, 32)
    streamed = table.streamed(weights_mb(convolutions(RESNET18, 32), table.device))
    for conv in convolutions(RESNET18, 32):
        assert table.conv_ms(conv, streamed=streamed) == pytest.approx(convs[conv.name], rel=0.05), conv.name


def test_noise_and_other_work_are_survived(tmp_path):
    result = measure_table(device(noise=0.1, disturbed=0.25), tmp_path / "t.json")
    assert np.median(errors(result.table)) < 0.05


def test_layers_cost_time_even_if_whole_runs_were_all_disturbed(tmp_path):
    def profile(spec: Graph, size: int) -> Sample:
        convs, rest = true_ms(spec, size)
        return Sample(spec, convs, rest, total_ms=1.0)  # other work took the rest of the time

    table = measure_table(profile, tmp_path / "t.json", seconds=0).table
    groups = channel_groups(RESNET18, residual="couple")
    half = at_widths(RESNET18, groups, {group.name: group.width // 2 for group in groups})
    assert table.network_ms(half, 32) < 0.6 * table.network_ms(RESNET18, 32)
    assert table.layer_ms == 0


def test_layers_that_take_no_longer_than_the_profiler_are_not_worth_less_than_nothing(tmp_path):
    """Of a network of some 0.1 ms, profiling is most of each layer's time."""

    def profile(spec: Graph, size: int) -> Sample:
        convs = {name: 0.004 + 1e-3 * ms for name, ms in true_ms(spec, size)[0].items()}
        return Sample(spec, convs, 0.1, 1.9 * (sum(convs.values()) + 0.1) - 0.015 * (len(convs) + 1))

    table = measure_table(profile, tmp_path / "t.json", seconds=0).table
    samples = lut_measure.samples_of(results.read(tmp_path / "t.json", "lut"), tmp_path / "t.json")
    assert np.median(np.abs(lut_fit.prediction_errors(table, samples, 32))) < 0.2


def test_work_that_slows_a_machine_for_a_while_does_not_count(tmp_path):
    truth, calls = device(), []

    def slow_at_first(spec: Graph, size: int) -> Sample:
        calls.append(spec)
        return slowed(truth(spec, size), 1.5 if len(calls) % 5 < 2 else 1.0)

    measure_table(slow_at_first, tmp_path / "t.json", seconds=0)
    rows = results.read(tmp_path / "t.json", "lut")["samples"]
    first = [truth(spec, 32) for spec in dict.fromkeys(calls)]
    slower = [row["total_ms"] / own.total_ms for row, own in zip(rows, first, strict=True)]
    assert np.mean(np.array(slower) > 1.01) < 0.2  # twice slowed down and once more: seldom
    assert 2 * lut_fit.PASS < len(calls) <= 3 * lut_fit.PASS


def test_a_pass_on_a_slower_machine_does_not_bend_the_table(tmp_path):
    truth, visits = device(noise=0.02), []

    def slower_in_a_pass(spec: Graph, size: int) -> Sample:
        visits.append(spec)
        # The first one, there and back.
        return slowed(truth(spec, size), 1.6 if len(visits) <= 2 * lut_fit.PASS else 1.0)

    bent = measure_table(slower_in_a_pass, tmp_path / "bent.json").table
    assert np.median(errors(bent)) < 0.02
    document = results.read(tmp_path / "bent.json", "lut")
    samples = lut_measure.samples_of(document, tmp_path / "bent.json")
    pace = 1 + lut_fit.prediction_errors(bent, samples, 32)
    evened = lut_fit.even_out(samples, pace)
    assert evened[0].total_ms == pytest.approx(samples[0].total_ms / 1.6, rel=0.03)
    assert evened[-1] == samples[-1]  # what was measured at the speed of most is left alone


def test_a_backend_without_revisits_is_measured_once(tmp_path):
    calls, truth = [], device()

    def profile(spec: Graph, size: int) -> Sample:
        calls.append(spec)
        return truth(spec, size)

    backend = MadeUp(profile, revisits=False)
    lut_measure.measure_table(RESNET18, 32, backend, tmp_path / "t.json", seconds=0)  # type: ignore[arg-type]
    assert len(calls) == lut_fit.PASS


def test_the_file_conforms_to_its_schema(exact):
    jsonschema.validate(results.read(exact, "lut"), results.schema("lut"))


def test_measuring_ends_where_the_table_is_stable(exact):
    document = results.read(exact, "lut")
    assert document["stable"]
    assert len(document["samples"]) == lut_measure.MINIMUM_PASSES * lut_fit.PASS
    assert max(map(abs, document["errors"])) < 0.02


def test_no_time_left_still_measures_one_pass(tmp_path):
    result = measure_table(device(), tmp_path / "t.json", seconds=0)
    assert result.networks == lut_fit.PASS
    assert result.median_error is None
    assert not result.stable
    assert load_table(tmp_path / "t.json") == result.table


def test_the_same_command_goes_on(tmp_path):
    path = tmp_path / "t.json"
    measure_table(device(), path, seconds=0)
    first = results.read(path, "lut")["samples"]
    again = measure_table(device(), path)
    samples = results.read(path, "lut")["samples"]
    assert again.networks == len(samples) > len(first)
    assert samples[: len(first)] == first
    assert len({tuple(sample["widths"]) for sample in samples}) == len(samples)  # none drawn twice


def test_a_network_that_cannot_be_timed_leaves_the_last_pass(tmp_path):
    path, profile, calls = tmp_path / "t.json", device(), []

    def breaks(spec: Graph, size: int) -> Sample:
        calls.append(spec)
        if len(calls) > 2 * lut_fit.PASS + 3:
            raise KeyboardInterrupt
        return profile(spec, size)

    with pytest.raises(KeyboardInterrupt):
        measure_table(breaks, path)
    assert len(results.read(path, "lut")["samples"]) == lut_fit.PASS
    load_table(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"device": DEVICE | {"batch": 8}}, "batch 1 (here 8)"),
        ({"device": DEVICE | {"threads": 7}}, "threads 1 (here 7)"),
        ({"spec": build_graph("resnet34")}, "arch resnet18 (here resnet34)"),
        ({"size": 64}, "size 32 (here 64)"),
    ],
)
def test_a_table_of_something_else_is_refused(exact, change, said):
    with pytest.raises(SlimdeployError) as error:
        measure_table(stopped, exact, **change)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_another_version_is_refused(exact, tmp_path):
    document = results.read(exact, "lut")
    document["device"]["versions"]["onnxruntime"] = "0.1"
    results.write(tmp_path / "old.json", document)
    with pytest.raises(SlimdeployError, match=r"versions \{'onnxruntime': '0.1'\} \(here"):
        measure_table(stopped, tmp_path / "old.json")


def test_a_shape_that_was_not_measured_is_named(exact):
    with pytest.raises(SlimdeployError, match=r"no 7x7/2@224 convolution \(conv1\).*slimdeploy lut"):
        load_table(exact).network_ms(build_graph("resnet18", stem="imagenet"), 224)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: d.pop("model"), "damaged"),
        (lambda d: d["model"]["terms"].reverse(), "damaged"),
        (lambda d: d["model"]["rest"].pop(), "damaged"),
        (lambda d: d.update(schema=99), "schema 99"),
        (lambda d: d.update(kind="bench"), "is not a lut result: slimdeploy lut"),
    ],
)
def test_a_damaged_table_is_refused(exact, tmp_path, damage, said):
    document = json.loads(exact.read_text())
    damage(document)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SlimdeployError, match=said):
        load_table(path)


def test_a_table_can_be_fitted_again_from_its_file(exact):
    document = results.read(exact, "lut")
    samples = [lut_measure._sample(row, RESNET18, 32) for row in document["samples"]]
    again = lut_fit.fit(samples, 32, document["device"])
    for sample in samples:  # their times are kept to six digits
        expected = load_table(exact).network_ms(sample.graph, 32)
        assert again.network_ms(sample.graph, 32) == pytest.approx(expected, rel=1e-3)
