"""Compiling and caching, and the host emulation itself: it must catch what it is there to catch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slimdeploy.kernels import compile
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_110", "sm_120")
SOURCES = ("preprocess", "topk", "accuracy", "copy")

# A sum over neighbours in shared memory; RACE leaves the barrier out, PARTIAL has half of the threads skip
# it.
NEIGHBOURS = r"""
struct Parameters { const int* from; int* to; };
KERNEL(neighbours, Parameters, 64, 1) {
    SHARED(int, values, 64);
    values[threadIdx.x] = p.from[threadIdx.x];
#if defined(PARTIAL)
    if (threadIdx.x < 32) SYNC();
#elif !defined(RACE)
    SYNC();
#endif
    p.to[threadIdx.x] = values[threadIdx.x] + values[(threadIdx.x + 1 + EXTRA) % 64 + EXTRA];
}
"""


def neighbours(device, *flags, extra=0):
    text = compile.source_text("copy") + NEIGHBOURS.replace("EXTRA", str(extra))
    image = compile.host_toolkit("-Wno-maybe-uninitialized", *flags).compile(text, "host")
    stream, source, target = device.stream(), device.allocate(256), device.allocate(256)
    device.upload(source, np.arange(64, dtype=np.int32), stream)
    parameters = np.array((source.address, target.address), np.dtype([("from", "<u8"), ("to", "<u8")]))
    result = np.empty(64, np.int32)
    try:
        device.launch(device.load_kernel(image, "neighbours"), (1, 1, 1), (64, 1, 1), parameters, stream)
        device.download(result, target, stream)
    finally:
        source.free()
        target.free()
    return result


def test_threads_meet_at_barriers(fake):
    np.testing.assert_array_equal(neighbours(fake), np.arange(64) + (np.arange(64) + 1) % 64)


def test_a_missing_barrier_shows(fake, monkeypatch):
    forwards = neighbours(fake, "-DRACE")
    monkeypatch.setenv("SLIMDEPLOY_REVERSED", "1")
    assert (forwards != neighbours(fake, "-DRACE")).any()


def test_a_barrier_that_some_threads_skip_is_an_error(fake):
    with pytest.raises(SlimdeployError, match="some threads of a block ended while others wait at a barrier"):
        neighbours(fake, "-DPARTIAL")


def test_too_large_a_block_or_another_struct_is_an_error(fake):
    kernel, stream = compile.kernel(fake, "copy", "copy"), fake.stream()
    parameters = np.zeros((), np.dtype("u8,u8,i8"))
    with pytest.raises(SlimdeployError, match="more threads a block than the kernel allows"):
        fake.launch(kernel, (1, 1, 1), (257, 1, 1), parameters, stream)
    with pytest.raises(SlimdeployError, match="the kernel's parameters have 24 bytes, not 8"):
        fake.launch(kernel, (1, 1, 1), (1, 1, 1), np.zeros((), "u8"), stream)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_sanitizers_find_nothing_in_the_kernels_and_something_in_a_planted_fault(sanitizer):
    """Every thread of a block as a real thread, watched for races, or for accesses out of bounds and
    undefined behaviour.
    """
    runtime = "libtsan.so" if sanitizer == "thread" else "libasan.so"
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for the host")
    library = subprocess.run(
        ["g++", f"-print-file-name={runtime}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(library).is_file():
        pytest.skip(f"g++ has no {runtime} here")
    script = Path(__file__).with_name("sanitized_run.py")
    environment = {
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "SLIMDEPLOY_CACHE": os.environ["SLIMDEPLOY_CACHE"],
    }

    def run(what):
        return subprocess.run(
            [sys.executable, str(script), sanitizer, what], env=environment, capture_output=True, text=True
        )

    clean = run("kernels")
    assert (clean.returncode, clean.stdout.split()[-1:]) == (0, ["done"]), clean.stderr[-2000:]
    assert "Sanitizer" not in clean.stderr
    assert "runtime error" not in clean.stderr
    planted = run("fault")
    expected = "data race" if sanitizer == "thread" else "heap-buffer-overflow"
    assert expected in planted.stderr
    assert planted.returncode != 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES)
def test_nvcc_compiles_for_every_gpu(source, arch, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc here")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    if arch.replace("sm", "compute") not in known.split():
        pytest.skip(f"this nvcc doesn't know {arch}")
    cubin = compile.image(source, arch, toolkit=compile.nvcc_toolkit(nvcc), cache=tmp_path)
    assert cubin[:4] == b"\x7fELF"


@pytest.mark.parametrize("source", SOURCES)
def test_nvrtc_compiles_the_same_text(source, tmp_path):
    try:
        toolkit = compile.nvrtc_toolkit()
    except SlimdeployError as error:
        pytest.skip(str(error))
    assert compile.image(source, "sm_87", toolkit=toolkit, cache=tmp_path)[:4] == b"\x7fELF"
    with pytest.raises(SlimdeployError, match=r"NVRTC can't compile the kernels for sm_87: .*error"):
        toolkit.compile("this is not CUDA", "sm_87")


def test_compiles_once_for_each_source_architecture_and_toolkit(tmp_path):
    compiled = []

    def toolkit(version):
        def record(text, arch):
            compiled.append((version, arch))
            return f"{version} {arch}".encode()

        return compile.Toolkit(version, record)

    for version, arch in [("1", "sm_80"), ("1", "sm_80"), ("1", "sm_87"), ("2", "sm_87"), ("1", "sm_80")]:
        image = compile.image("topk", arch, toolkit=toolkit(version), cache=tmp_path)
        assert image == f"{version} {arch}".encode()
    assert compiled == [("1", "sm_80"), ("1", "sm_87"), ("2", "sm_87")]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_changed_header_is_another_source(tmp_path, monkeypatch):
    for file in compile.FOLDER.glob("*.[ch]*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    toolkit, cache = compile.Toolkit("1", lambda text, arch: text.encode()), tmp_path / "cache"
    monkeypatch.setattr(compile, "FOLDER", tmp_path)
    first = compile.image("topk", "sm_80", toolkit=toolkit, cache=cache)
    with (tmp_path / "common.h").open("a") as header:
        header.write("// changed\n")
    assert compile.image("topk", "sm_80", toolkit=toolkit, cache=cache) != first


def test_says_what_is_missing_or_wrong(monkeypatch):
    with pytest.raises(SlimdeployError, match=r"^g\+\+ can't compile the kernels for host: .*error"):
        compile.host_toolkit().compile("int main( {", "host")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    compile.host_toolkit.cache_clear()
    with pytest.raises(SlimdeployError, match=r"needs g\+\+: sudo apt install g\+\+"):
        FakeDevice().load_kernel(compile.image("copy", "host"), "copy")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    compile.nvrtc_toolkit.cache_clear()
    with pytest.raises(SlimdeployError, match=r"needs nvcc .* or NVRTC .pip install cuda-bindings"):
        compile.nvrtc_toolkit()
    compile.nvrtc_toolkit.cache_clear()
