"""Run by test_compile_kernels.py with a sanitizer preloaded: all kernels on small inputs, or a planted fault.

Arguments: the sanitizer as in `-fsanitize=`, and `kernels` or `fault`.
"""

import os
import sys
from types import SimpleNamespace

import numpy as np

from slimdeploy.kernels import compile
from slimdeploy.kernels.classify import Accuracy, TopK
from slimdeploy.kernels.image_layout import ImageLayout
from slimdeploy.kernels.preprocess import Preprocess
from slimdeploy.toolchain.preprocessing import Preprocessing
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice

FAULTY = r"""
struct Parameters { int* to; int past; };
KERNEL(faulty, Parameters, 32, 1) {
    SHARED(int, values, 32);
    values[threadIdx.x] = threadIdx.x;  // no barrier
    p.to[threadIdx.x + p.past] = values[31 - threadIdx.x];
}
"""


def exact(nbytes):
    """Memory of exactly this size, so that the sanitizer sees what goes past it."""
    array = np.zeros(nbytes, np.uint8)
    return SimpleNamespace(address=array.ctypes.data, nbytes=nbytes, array=array)


def run_kernels(device):
    stream = device.stream()
    for layout, size, batch, precision in [
        (ImageLayout("rgb", 33, 21), 3, 2, "fp32"),
        (ImageLayout("nv12", 34, 22, pitch=48), 4, 1, "fp16"),
        (ImageLayout("nv12", 7, 5), 8, 1, "fp32"),
        (ImageLayout("bgr", 3000, 4), 1, 1, "fp16"),  # more than a block filters in one go
    ]:
        kernel = Preprocess(
            device, layout, Preprocessing(size, (0, 0, 0), (1, 1, 1), (size, size)), precision=precision
        )
        images = exact(layout.stride * (batch - 1) + layout.nbytes)
        kernel.queue(images, exact(kernel.output_bytes(batch)), batch, stream)
        kernel.close()
    for classes in (1, 300):
        logits, found = exact(3 * classes * 4), exact(3 * 4)
        TopK(device, classes=classes, k=1).queue(logits, found, exact(3 * 4), 3, stream)
        Accuracy(device, classes=classes).queue(logits, exact(3 * 4), exact(4), 3, stream)


def main(sanitizer, what):
    del os.environ["LD_PRELOAD"]  # the compiler isn't to be watched
    toolkit = compile.host_toolkit(
        f"-fsanitize={sanitizer}",
        "-fno-sanitize-recover=undefined",
        "-DSLIMDEPLOY_THREADS",
        "-pthread",
        "-g",
        "-O1",
    )
    compile.find_toolkit = lambda arch: toolkit
    device = FakeDevice()
    if what == "kernels":
        run_kernels(device)
    else:
        image = toolkit.compile(compile.source_text("copy") + FAULTY, "host")
        parameters = np.zeros((), np.dtype([("to", "<u8"), ("past", "<i4")], align=True))
        target = exact(32 * 4)
        parameters["to"], parameters["past"] = target.address, 0 if sanitizer == "thread" else 1
        device.launch(device.load_kernel(image, "faulty"), (1, 1, 1), (32, 1, 1), parameters, device.stream())
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
