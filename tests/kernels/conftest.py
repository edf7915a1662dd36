"""The device that kernel tests run on: the fake, with the kernels compiled for the host, and a GPU where
there is one.
"""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.device import open_device
from slimdeploy.toolchain.runtime.devices.fake import FakeDevice


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory):
    """Compiled kernels go to a folder of the test run's, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIMDEPLOY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def fake():
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for the host")
    return FakeDevice()


@pytest.fixture(scope="session", params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "host":
        return request.getfixturevalue("fake")
    try:
        return open_device()
    except SlimdeployError as error:
        pytest.skip(f"no GPU: {error}")


@pytest.fixture(scope="session")
def memory(device):
    """Arrays on the device: `to(array, offset)` → buffer, `back(buffer, shape, dtype)` → array, `stream`."""
    stream = device.stream()

    def to(array, offset=0):
        content = np.zeros(offset + array.nbytes, np.uint8)
        content[offset:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        whole = device.allocate(content.nbytes)
        device.upload(whole, content, stream)
        stream.synchronize()
        return SimpleNamespace(
            address=whole.address + offset, nbytes=array.nbytes, whole=whole, free=whole.free
        )

    def back(buffer, shape, dtype):
        array = np.empty(shape, dtype)
        device.download(array, getattr(buffer, "whole", buffer), stream)
        stream.synchronize()
        return array

    return SimpleNamespace(to=to, back=back, stream=stream)
