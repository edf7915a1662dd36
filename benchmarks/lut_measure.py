"""Measures a latency table: networks of the architecture at random widths, profiled layer by layer.

A convolution is timed where it will run: inside a network, between its neighbours, with the caches as they
leave them and with what the runtime fuses into it. A convolution in a session of its own would pay for the
session and for layout changes at both ends that networks don't have between their layers.
"""

from __future__ import annotations

import functools
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slimdeploy.benchmarks import conditions, results
from slimdeploy.benchmarks.layers import sum_by_layer
from slimdeploy.benchmarks.lut import KIND, LatencyTable
from slimdeploy.benchmarks.lut_fit import Sample, fit, prediction_errors
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.export.graph import INPUT, Parameters, build_graph
from slimdeploy.toolchain.networks.channels import ChannelConfig
from slimdeploy.toolchain.networks.layers import Conv, enumerate_layers
from slimdeploy.toolchain.networks.spec import NetworkSpec

ALIGNMENT = 8
"""Widths drawn are multiples of it."""
PASS = 12
"""Networks in a pass; after each pass the table is fitted again and written."""
MINIMUM_PASSES = 4
STABLE = 0.01
"""The table is stable when a pass moved its prediction of half of all networks by less than this share."""
WARM_UP_RUNS, MINIMUM_RUNS, MAXIMUM_RUNS, RUNS_S = 2, 3, 50, 0.15
OPSET = 17


@dataclass(frozen=True)
class LutOptions:
    """`seconds` bounds the measuring; a first pass is always finished. None threads: all processors."""

    batch: int = 1
    threads: int | None = None
    seconds: float = 150.0


@dataclass(frozen=True)
class LutResult:
    """A table, and how it came about. `errors` are relative, of the networks of the last pass as the table
    before that pass predicted them; empty where there was none.
    """

    table: LatencyTable
    networks: int
    stable: bool
    errors: tuple[float, ...]
    remarks: tuple[str, ...]
    """What speaks against the times: the machine was busy, or throttled."""

    @property
    def median_error(self) -> float | None:
        return float(np.median(np.abs(self.errors))) if self.errors else None

    @property
    def worst_error(self) -> float | None:
        return float(np.max(np.abs(self.errors))) if self.errors else None


def measure_table(
    spec: NetworkSpec,
    size: int,
    options: LutOptions,
    output: Path,
    *,
    progress: Callable[[str], None] = lambda message: None,
    profile: Callable[[NetworkSpec, int, LutOptions], Sample] | None = None,
) -> LutResult:
    """Measure networks of the architecture and stem of `spec`, fit the table and write it to `output` after
    each pass, until it is stable or the time is used up.

    Goes on from the networks that `output` holds. Raises SlimdeployError where that was measured on another
    device, with other versions, or for another network.
    """
    profile = profile or profile_onnxruntime
    full, device = spec.full(), device_key(options)
    state = conditions.state()
    samples = _resume(output, full, size, device)
    table = fit(samples, size, device) if samples else None
    stable, begin, errors = False, time.perf_counter(), np.empty(0)
    passes = len(samples) // PASS

    def result() -> LutResult:
        assert table is not None
        said = conditions.remarks(state, conditions.state(), cores=device["cores"])
        return LutResult(table, len(samples), stable, tuple(errors.tolist()), tuple(said))

    while not samples or (time.perf_counter() - begin < options.seconds and not stable):
        rng = random.Random(passes)
        drawn = [full] if not samples else []
        drawn += [random_network(full, rng) for _ in range(PASS - len(drawn))]
        rng.shuffle(drawn)
        found: list[Sample] = []
        for one in drawn:
            if samples and time.perf_counter() - begin >= options.seconds:
                return result()  # part of a pass is not worth a fit; the same would be drawn again
            found.append(profile(one, size, options))
        before, passes = table, passes + 1
        samples += found
        table = fit(samples, size, device)
        if before:
            errors = prediction_errors(before, found, size)
            stable = passes >= MINIMUM_PASSES and _moved(before, table, samples, size) < STABLE
        _write(output, full, size, samples, result())
        progress(_progress(result(), time.perf_counter() - begin, options))
    return result()


def _progress(result: LutResult, seconds: float, options: LutOptions) -> str:
    error = result.median_error
    told = "" if error is None else f", the last {PASS} predicted within {error:.1%}"
    return f"{result.networks} networks, {seconds:.0f} of at most {options.seconds:.0f} s{told}"


def device_key(options: LutOptions) -> dict[str, Any]:
    """What a table holds for: times measured under another key say nothing here."""
    import onnxruntime

    machine = conditions.machine()
    return {
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "backend": "onnxruntime-cpu",
        "threads": options.threads or machine["cores"],
        "batch": options.batch,
        "versions": {"onnxruntime": onnxruntime.__version__},
    }


def random_network(full: NetworkSpec, rng: random.Random) -> NetworkSpec:
    """The network at random widths: some overall share, each width around it; residual streams whole or
    narrowed like the rest.
    """
    share = math.exp(rng.uniform(math.log(0.06), 0))
    coupled = rng.random() < 0.5
    channels, arch = full.channels, full.architecture

    def narrow(width: int) -> int:
        wanted = min(width, share * rng.uniform(0.5, 1.6) * width)
        return max(ALIGNMENT, round(wanted / ALIGNMENT) * ALIGNMENT)

    stem, blocks = narrow(channels.stem), []
    stream = stem
    for name, (*inner, out) in channels.named(arch):
        if arch.has_projection(name):
            stream = narrow(out) if coupled else out
        blocks.append((*map(narrow, inner), stream))
    return full.with_channels(ChannelConfig(stem, tuple(blocks)))


def profile_onnxruntime(spec: NetworkSpec, size: int, options: LutOptions) -> Sample:
    """Run the network with weights of noise on the CPU: profiled first, then timed whole."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level, settings.enable_profiling = 3, True
    if options.threads:
        settings.intra_op_num_threads = options.threads
    images = np.random.default_rng(0).random((options.batch, 3, size, size), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            build_noise(spec, size), settings, providers=["CPUExecutionProvider"]
        )
        run = functools.partial(session.run, None, {INPUT: images})
        _times(run)
        events = json.loads(Path(session.end_profiling()).read_text())
    total_ms = float(np.median(_times(run)))  # from here on nothing is recorded
    layers = sum_by_layer(events, skip=WARM_UP_RUNS)
    names = [conv.name for conv in enumerate_layers(spec, size).convs()]
    if missing := [name for name in names if name not in layers]:
        raise SlimdeployError(
            f"onnxruntime {onnxruntime.__version__} doesn't tell the time of {missing[0]}: no latency table "
            "can be measured with it"
        )
    convs_ms = {name: layers.pop(name) for name in names}
    return Sample(spec, convs_ms, sum(layers.values()), total_ms)


def build_noise(spec: NetworkSpec, size: int) -> bytes:
    """The network as a serialised ONNX model, with weights of noise."""
    model = build_graph(spec, size, conv=_noise, classifier=_noise_classifier(spec), opset=OPSET)
    return model.SerializeToString()


def _times(run: Callable[[], Any]) -> list[float]:
    """Warm up, then time runs, ms each."""
    for _ in range(WARM_UP_RUNS):
        run()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < MINIMUM_RUNS or (len(times) < MAXIMUM_RUNS and time.perf_counter() - begin < RUNS_S):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1000)
    return times


@functools.cache
def _pool() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)


def _noise(conv: Conv) -> Parameters:
    """Weights that keep activations near 1: no time is lost to denormal or infinite numbers."""
    fan_in = conv.in_channels * conv.kernel**2
    shape = (conv.out_channels, conv.in_channels, conv.kernel, conv.kernel)
    return np.resize(_pool() / np.float32(math.sqrt(fan_in)), shape), np.resize(_pool(), conv.out_channels)


def _noise_classifier(spec: NetworkSpec) -> Parameters:
    width = spec.channels.blocks[-1][-1]
    return np.resize(_pool(), (spec.classes, width)), np.resize(_pool(), spec.classes)


def _moved(before: LatencyTable, after: LatencyTable, samples: list[Sample], size: int) -> float:
    """How far the last fit moved the predictions, as the median share."""
    ratios = [after.network_ms(one.spec, size) / before.network_ms(one.spec, size) for one in samples]
    return float(np.median(np.abs(np.array(ratios) - 1)))


def _resume(output: Path, full: NetworkSpec, size: int, device: dict[str, Any]) -> list[Sample]:
    """The networks that `output` already holds; none where it doesn't exist."""
    if not output.exists():
        return []
    document = results.read(output, KIND)
    for what, theirs, ours in (
        ("on", document.get("device"), device),
        ("of", document.get("network"), _network(full, size)),
    ):
        if theirs != ours:
            raise SlimdeployError(
                f"{output} was measured {what} {_differing(theirs, ours)}: name another --output or remove it"
            )
    try:
        return [_sample(row, full, size) for row in document["samples"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SlimdeployError(f"{output}: damaged latency table ({error!r}): remove it") from error


def _differing(theirs: Any, ours: dict[str, Any]) -> str:
    """`batch 1 (here 64), …`: the entries that differ."""
    theirs = theirs if isinstance(theirs, dict) else {}
    parts = [
        f"{key} {theirs.get(key)} (here {value})" for key, value in ours.items() if theirs.get(key) != value
    ]
    return ", ".join(parts) or "something else"


def _network(full: NetworkSpec, size: int) -> dict[str, Any]:
    return {"arch": full.arch, "stem": full.stem, "classes": full.classes, "size": size}


def _sample(row: dict[str, Any], full: NetworkSpec, size: int) -> Sample:
    spec = full.with_channels(ChannelConfig.from_flat(full.architecture, row["channels"]))
    names = [conv.name for conv in enumerate_layers(spec, size).convs()]
    convs_ms = {name: float(ms) for name, ms in zip(names, row["convs_ms"], strict=True)}
    return Sample(spec, convs_ms, float(row["rest_ms"]), float(row["total_ms"]))


def _write(output: Path, full: NetworkSpec, size: int, samples: list[Sample], result: LutResult) -> None:
    rows = [
        {
            "channels": list(sample.spec.channels.flat()),
            "total_ms": _rounded(sample.total_ms),
            "rest_ms": _rounded(sample.rest_ms),
            "convs_ms": [_rounded(ms) for ms in sample.convs_ms.values()],
        }
        for sample in samples
    ]
    document = results.document(
        KIND,
        command=f"slimdeploy {' '.join(sys.argv[1:])}",
        device=result.table.device,
        network=_network(full, size),
        stable=result.stable,
        errors=[round(error, 4) for error in result.errors],
        remarks=list(result.remarks),
        model=result.table.to_json(),
        samples=rows,
    )
    results.write(output, document)


def _rounded(ms: float) -> float:
    """Six digits: more than any clock tells."""
    return float(f"{ms:.6g}")
