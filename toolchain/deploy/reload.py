"""A running server takes up what is deployed: it looks every second, and at once on SIGHUP.

The new model is opened and warmed up beside the old one, in a thread of its own, and then takes its place. No
request is refused for it, and none waits. A version that can't be opened is said on standard error, and the
old one serves on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slimdeploy.toolchain.deploy.classify import open_model
from slimdeploy.toolchain.deploy.http import Served, Service
from slimdeploy.toolchain.deploy.running import Registration
from slimdeploy.toolchain.deploy.store import Store
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.runtime.session import SessionOptions

LOOK_S = 1.0


@dataclass(frozen=True)
class Source:
    """Where the model comes from: the file `model`, or the version deployed in `root`."""

    model: Path | None
    root: Path
    options: SessionOptions
    batch: int

    def open(self) -> Served:
        """Open the model and run it once, in the thread that will compute. Raises SlimdeployError where it
        can't be.
        """
        compute = ThreadPoolExecutor(1)
        try:
            served = compute.submit(self._open, compute).result()
        except BaseException:
            compute.shutdown()
            raise
        # What lives from now on isn't looked through again at each collection, in the middle of a request.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return served

    def _open(self, compute: ThreadPoolExecutor) -> Served:
        session, info, name = open_model(self.model, self.root, self.options)
        try:
            for size in {1, self.batch}:  # the first run of each size sets the runtime up
                session.run(np.zeros((size, *session.input_shape), np.float32))
        except BaseException:
            session.close()  # here: a device belongs to the thread that opened it
            raise
        return Served(session, info, name, compute)

    def deployed(self) -> str | None:
        """Name of the version deployed now; None for a model file, or where that can't be told."""
        if self.model is not None:
            return None
        with contextlib.suppress(SlimdeployError):  # said when it is opened
            return Store(self.root).current().name
        return None


def close(served: Served) -> None:
    """Close the session in its thread, and end the thread."""
    served.compute.submit(served.session.close).result()
    served.compute.shutdown()


def reloading(
    source: Source, registration: Registration | None, say: Callable[[str], None]
) -> Callable[[Service], contextlib.AbstractAsyncContextManager[None]]:
    """What runs beside the requests: follow `source`. `say` is called with one line for each change;
    `registration` is None where no deploy waits for this server.
    """

    @contextlib.asynccontextmanager
    async def background(service: Service) -> AsyncIterator[None]:
        asked, ended = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, asked.set)
        task = asyncio.create_task(_follow(source, service, registration, asked, ended, say))
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            ended.set()
            asked.set()
            await task  # to its end: nobody else closes a model that is being opened

    return background


async def _follow(
    source: Source,
    service: Service,
    registration: Registration | None,
    asked: asyncio.Event,
    ended: asyncio.Event,
    say: Callable[[str], None],
) -> None:
    tried = service.served.name
    while True:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asked.wait(), LOOK_S)
        if ended.is_set():
            return
        name = source.deployed()
        if not asked.is_set() and name in (None, tried):
            continue
        asked.clear()
        tried = name or tried
        await _reload(source, service, registration, tried, say)


async def _reload(
    source: Source, service: Service, registration: Registration | None, name: str, say: Callable[[str], None]
) -> None:
    try:
        fresh = await asyncio.to_thread(source.open)
    except Exception as error:  # whatever a runtime raises over a file: the old model serves on
        reason = str(error) if isinstance(error, SlimdeployError) else repr(error)
        service.metrics.reloads.labels("failed").inc()
        if registration:
            registration.tell(service.served.name, failed={name: reason})
        say(f"serves {service.served.name} on: {reason}")
        return
    before = await service.switch(fresh)
    service.metrics.reloads.labels("done").inc()
    if registration:
        registration.tell(fresh.name)
    say(f"serves {fresh.name} now, {fresh.session.precision} on {fresh.session.backend}")
    await asyncio.to_thread(close, before)
