"""The Device protocol: the fake's own rules, the choice of library, and the names used of libraries that
can't run here.
"""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime import device as protocol
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice

DEVICES = Path(inspect.getfile(FakeDevice)).parent


@pytest.fixture
def fake():
    return FakeDevice(total_memory=1 << 20)


def methods(kind):
    return {
        name: [p.name for p in inspect.signature(value).parameters.values()]
        for name, value in vars(kind).items()
        if inspect.isfunction(value) and not name.startswith("_")
    }


def written_methods(path, name):
    """Methods of class `name` in the source at `path`, which may not be importable here."""
    found = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    (kind,) = [node for node in found if node.name == name]
    functions = [node for node in kind.body if isinstance(node, ast.FunctionDef)]
    return {f.name: [a.arg for a in f.args.args] for f in functions if not f.name.startswith("_")}


@pytest.mark.parametrize(
    ("file", "prefix"), [("pycuda", "Pycuda"), ("cuda_python", "Bindings"), ("fake", "Fake")]
)
def test_every_implementation_has_the_methods_of_the_protocol(file, prefix):
    for part in ("Device", "Buffer", "Stream", "Event"):
        wanted = methods(getattr(protocol, part))
        written = written_methods(DEVICES / f"{file}.py", prefix + part)
        assert {name: written.get(name) for name in wanted} == wanted


def test_every_name_used_of_cuda_python_exists():
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    tree = ast.parse((DEVICES / "cuda_python.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "driver"
    }
    assert len(used) > 20
    assert {name for name in used if not hasattr(driver, name)} == set()
    members = {"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR"}
    assert members <= set(driver.CUdevice_attribute.__members__)
    assert {"CUDA_SUCCESS", "CUDA_ERROR_OUT_OF_MEMORY"} <= set(driver.CUresult.__members__)


def test_imports_with_no_cuda_library():
    code = (
        "import sys; sys.modules['pycuda'] = sys.modules['cuda'] = sys.modules['torch'] = None\n"
        "from slimdeploy.toolchain.runtime.device import open_device\n"
        "from slimdeploy.kernels import bandwidth, classify, preprocess\n"
        "open_device()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "a CUDA device needs pycuda or cuda-python, which is not installed: pip install" in done.stderr


def test_an_unknown_library_is_refused():
    with pytest.raises(
        SlimdeployError, match="unknown CUDA library 'cupy'; known: auto, pycuda, cuda-python"
    ):
        protocol.open_device(implementation="cupy")


def test_a_library_that_cannot_load_says_why(monkeypatch):
    def refuse(name):
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(protocol.importlib, "import_module", refuse)
    with pytest.raises(SlimdeployError, match=r"^pycuda can't be loaded: libcuda\.so\.1: cannot open"):
        protocol.open_device()


def test_copies_there_and_back(fake):
    stream, buffer = fake.stream(), fake.allocate(16)
    there, back = np.arange(4, dtype=np.float32), fake.pinned((4,), np.float32)
    fake.upload(buffer, there, stream)
    fake.download(back, buffer, stream)
    np.testing.assert_array_equal(there, back)


def test_memory_is_counted_and_runs_out(fake):
    first = fake.allocate(1 << 19)
    assert fake.memory_info() == (1 << 19, 1 << 20)
    with pytest.raises(SlimdeployError, match="fake: can't allocate 1 MiB, 0 of 1 MiB are free"):
        fake.allocate((1 << 19) + 1)
    first.free()
    first.free()
    assert fake.memory_info().free == 1 << 20
    assert fake.buffers == []


def test_a_graph_does_nothing_until_launched_and_then_the_same_again(fake):
    stream, buffer = fake.stream(), fake.allocate(4)
    value, result = np.zeros(1, np.int32), np.zeros(1, np.int32)

    def work():
        fake.upload(buffer, value, stream)
        fake.download(result, buffer, stream)

    graph = fake.capture(stream, work)
    value[0] = 7
    assert result[0] == 0
    graph.launch(stream)
    assert result[0] == 7
    value[0] = 8
    graph.launch(stream)
    assert result[0] == 8
    graph.free()
    graph.free()
    with pytest.raises(SlimdeployError, match="the CUDA graph is freed"):
        graph.launch(stream)


def test_work_of_another_library_is_captured_too(fake):
    stream, done = fake.stream(), []
    graph = fake.capture(stream, lambda: fake.enqueue(stream.handle, lambda: done.append(1)))
    assert done == []
    graph.launch(stream)
    assert done == [1]


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda d, s: d.allocate(1), "memory can't be allocated during a capture"),
        (lambda d, s: d.pinned((1,), np.uint8), "memory can't be allocated during a capture"),
        (lambda d, s: s.synchronize(), "a stream can't be waited for while it is captured"),
        (lambda d, s: d.event().record(d.stream()), "stream 2 gets work while stream 1 is captured"),
        (lambda d, s: d.capture(s, lambda: None), "a capture is under way"),
    ],
)
def test_what_a_capture_forbids(fake, work, message):
    stream = fake.stream()
    with pytest.raises(SlimdeployError, match=message):
        fake.capture(stream, lambda: work(fake, stream))
    fake.allocate(1).free()  # the capture is over


def test_copies_that_a_driver_would_get_wrong_are_refused(fake):
    stream, buffer = fake.stream(), fake.allocate(8)
    with pytest.raises(SlimdeployError, match="a copy of 12 bytes doesn't fit a buffer of 8"):
        fake.upload(buffer, np.zeros(3, np.int32), stream)
    with pytest.raises(SlimdeployError, match=r"a copy needs a contiguous array, not strides \(8,\)"):
        fake.download(np.zeros(4, np.int32)[::2], buffer, stream)
    buffer.free()
    with pytest.raises(SlimdeployError, match="the buffer is freed"):
        fake.upload(buffer, np.zeros(1), stream)


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((0, 1, 1), (1, 1, 1)),
        ((1, 65536, 1), (1, 1, 1)),
        ((1, 1, 65536), (1, 1, 1)),
        ((1, 1, 1), (1025, 1, 1)),
    ],
)
def test_launches_that_a_driver_refuses(fake, grid, block):
    with pytest.raises(SlimdeployError, match="can't be launched"):
        fake.launch((None, 1), grid, block, np.zeros((), np.uint8), fake.stream())


def test_events_measure_time(fake):
    stream, start, end = fake.stream(), fake.event(), fake.event()
    with pytest.raises(SlimdeployError, match="the event was never recorded"):
        fake.elapsed_ms(start, end)
    start.record(stream)
    end.record(stream)
    assert fake.elapsed_ms(start, end) >= 0


def test_nothing_works_once_closed(fake):
    fake.close()
    fake.close()
    with pytest.raises(SlimdeployError, match="the device is closed"):
        fake.allocate(1)


def test_graphs_need_a_driver(monkeypatch):
    from slimdeploy.toolchain.runtime.devices import graphs

    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(graphs.ctypes, "CDLL", missing)
    graphs._driver.cache_clear()
    with pytest.raises(SlimdeployError, match="no NVIDIA driver here"):
        graphs.capture(FakeDevice().stream(), lambda: None)
