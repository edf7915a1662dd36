"""The real Device implementations and the kernels' speed, where there is an NVIDIA GPU. The kernels' numbers
are checked on it by tests/kernels.
"""

import numpy as np
import pytest

from slimdeploy.kernels import bandwidth, compile
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.device import IMPLEMENTATIONS, open_device

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=list(IMPLEMENTATIONS))
def gpu(request):
    try:
        device = open_device(implementation=request.param)
    except SlimdeployError as error:
        pytest.skip(f"no GPU through {request.param}: {error}")
    yield device
    device.close()


def test_copies_there_and_back(gpu):
    stream, buffer = gpu.stream(), gpu.allocate(1 << 20)
    there, back = gpu.pinned((1 << 18,), np.float32), gpu.pinned((1 << 18,), np.float32)
    there[:] = np.random.default_rng(0).normal(size=there.size)
    gpu.upload(buffer, there, stream)
    gpu.download(back, buffer, stream)
    stream.synchronize()
    np.testing.assert_array_equal(there, back)
    buffer.free()
    buffer.free()


def test_a_graph_replays_what_was_captured(gpu):
    stream, source, target = gpu.stream(), gpu.allocate(64), gpu.allocate(64)
    value, result = gpu.pinned((16,), np.int32), gpu.pinned((16,), np.int32)
    kernel = bandwidth.Copy(gpu)

    def work():
        gpu.upload(source, value, stream)
        kernel.queue(source, target, 4, stream)
        gpu.download(result, target, stream)

    graph = gpu.capture(stream, work)
    for number in (3, 4):
        value[:], result[:] = number, 0
        graph.launch(stream)
        stream.synchronize()
        assert (result == number).all()
    graph.free()
    graph.free()


def test_a_capture_that_fails_leaves_the_stream_usable(gpu):
    stream = gpu.stream()
    with pytest.raises(ZeroDivisionError):
        gpu.capture(stream, lambda: 1 / 0)
    stream.synchronize()


def test_memory_and_its_end(gpu):
    free, total = gpu.memory_info()
    assert 0 < free <= total
    with pytest.raises(SlimdeployError, match="can't allocate"):
        gpu.allocate(total * 2)


def test_events_measure_gpu_time(gpu):
    stream, start, end = gpu.stream(), gpu.event(), gpu.event()
    buffer, array = gpu.allocate(1 << 24), gpu.pinned((1 << 24,), np.uint8)
    start.record(stream)
    gpu.upload(buffer, array, stream)
    end.record(stream)
    assert 0 < gpu.elapsed_ms(start, end) < 1000
    buffer.free()


def test_nvrtc_and_nvcc_images_both_load(gpu, tmp_path):
    for toolkit in (compile.nvrtc_toolkit, compile.nvcc_toolkit):
        try:
            image = compile.image("topk", gpu.arch, toolkit=toolkit(), cache=tmp_path)
        except (SlimdeployError, FileNotFoundError) as error:
            pytest.skip(f"not every compiler is here: {error}")
        gpu.load_kernel(image, "topk_fp32")


def test_bandwidth_is_measured(gpu):
    """Figures are make gpu-check's; here only that they are sane: no kernel beats the memory by far."""
    rows = bandwidth.measure(gpu, bandwidth.Workload(batch=16), launches=10)
    for row in rows[:4]:
        print(f"{row.kernel}: {row.ms:.3f} ms, {row.gb_per_s:.0f} GB/s, {row.of_copy:.0%} of a copy")
        assert 0 < row.of_copy < 5
