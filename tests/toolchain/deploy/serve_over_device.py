"""`slimdeploy serve` whose sessions pass each batch through `open_device()`'s memory, as engines do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slimdeploy.toolchain.cli import main
from slimdeploy.toolchain.deploy import reload
from slimdeploy.toolchain.runtime.device import open_device
from slimdeploy.toolchain.runtime.session import Session

open_model = reload.open_model


class DeviceSession:
    def __init__(self, session: Session, broken: bool) -> None:
        self._session, self._broken = session, broken
        self.info, self.precision, self.backend = session.info, session.precision, "device"
        self.input_shape = session.input_shape
        self._device = open_device()
        self._stream, self._event = self._device.stream(), self._device.event()
        self._host = self._device.pinned((8, *self.input_shape), np.float32)
        self._buffer = self._device.allocate(self._host.nbytes)

    def run(self, batch: np.ndarray) -> np.ndarray:
        if self._broken:
            raise RuntimeError("the warm-up fails")
        host = self._host[: len(batch)]
        with self._device.active():
            self._device.upload(self._buffer, np.ascontiguousarray(batch), self._stream)
            self._device.download(host, self._buffer, self._stream)
            self._event.record(self._stream)
            self._stream.synchronize()
        return self._session.run(host)

    def close(self) -> None:
        self._session.close()
        self._buffer.free()
        del self._stream, self._event, self._host
        self._device.close()


def open_on_device(model: Path, root: Path, options: object) -> tuple:
    session, info, name = open_model(model, root, options)
    return DeviceSession(session, model.with_suffix(".broken").exists()), info, name


reload.open_model = open_on_device
main()
