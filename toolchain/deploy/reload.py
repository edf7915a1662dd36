"""A running server switches to a newly deployed version: it checks every second, and at once on SIGHUP.

The new model is opened and warmed up in its own thread while the old one serves, and then replaces it. No
request is refused or delayed. If a version can't be opened, the error is printed on standard error, and the
old one continues to serve.
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
    """The source of the model: the file `model`, or the version deployed in `root`."""

    model: Path | None
    root: Path
    options: SessionOptions
    batch: int

    def open(self) -> Served:
        """Open the model and run it once, in the thread that will compute. Raises SlimdeployError if that
        fails.
        """
        compute = ThreadPoolExecutor(1)
        try:
            served = compute.submit(self._open, compute).result()
        except BaseException:
            compute.shutdown()
            raise
        # Exclude existing objects from later garbage collections, which would delay requests.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        return served

    def _open(self, compute: ThreadPoolExecutor) -> Served:
        session, info, name = open_model(self.model, self.root, self.options)
        try:
            for size in {1, self.batch}:  # the first run of each size initialises the runtime
                session.run(np.zeros((size, *session.input_shape), np.float32))
        except BaseException:
            session.close()  # here: a device belongs to the thread that opened it
            raise
        return Served(session, info, name, compute)

    def deployed(self) -> str | None:
        """Name of the version deployed now; None for a model file, or if it can't be read."""
        if self.model is not None:
            return None
        with contextlib.suppress(SlimdeployError):  # reported when it is opened
            return Store(self.root).current().name
        return None


def close(served: Served) -> None:
    """Close the session in its thread, and end the thread."""
    served.compute.submit(served.session.close).result()
    served.compute.shutdown()


def reloading(
    source: Source, registration: Registration | None, say: Callable[[str], None]
) -> Callable[[Service], contextlib.AbstractAsyncContextManager[None]]:
    """Follow `source` while requests are served. `say` is called with one line for each change;
    `registration` is None if no deploy waits for this server.
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
            await task  # wait for it: nothing else closes a model that is being opened

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
        try:
            await _reload(source, service, registration, tried, say)
        except Exception as error:  # e.g. standard error is closed: the next deployment is followed anyway
            service.metrics.reloads.labels("failed").inc()
            with contextlib.suppress(OSError):
                say(f"error while the model was changed: {error!r}")


async def _reload(
    source: Source, service: Service, registration: Registration | None, name: str, say: Callable[[str], None]
) -> None:
    try:
        fresh = await asyncio.to_thread(source.open)
    except Exception as error:  # any error of a runtime: the old model continues to serve
        reason = str(error) if isinstance(error, SlimdeployError) else repr(error)
        service.metrics.reloads.labels("failed").inc()
        if registration:
            registration.tell(service.served.name, failed={name: reason})
        say(f"could not open {name}: {reason}; still serving {service.served.name}")
        return
    before = await service.switch(fresh)
    service.metrics.reloads.labels("done").inc()
    if registration:
        registration.tell(fresh.name)
    await asyncio.to_thread(close, before)
    say(f"serves {fresh.name} now, {fresh.session.precision} on {fresh.session.backend}")
