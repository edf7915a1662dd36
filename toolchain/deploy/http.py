"""The HTTP interface, an ASGI application: `POST /classify`, `GET /healthz`, `GET /metrics`.

The model can be replaced at run time (`Service.switch`): the old model still answers the images that it has
admitted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import anyio
import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from slimdeploy.toolchain.deploy.batching import (
    Batcher,
    BatchOptions,
    ClosedError,
    ModelError,
    OverloadedError,
)
from slimdeploy.toolchain.deploy.images import ImageLimits, decode_image
from slimdeploy.toolchain.deploy.lag import LoopLag
from slimdeploy.toolchain.deploy.metrics import Metrics
from slimdeploy.toolchain.deploy.predict import NOT_FINITE, top_classes
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.models.model_info import ModelInfo
from slimdeploy.toolchain.runtime.preprocess import normalise
from slimdeploy.toolchain.runtime.session import Session

UPLOADS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
CONTENT_TYPES = (*(f"image/{name.lower()}" for name in UPLOADS), "application/octet-stream")
UPLOAD_MB = 16
"""A photo of 50 megapixels has 10 to 15 MiB as JPEG."""
HELD_UPLOADS = 16
"""Maximum number of uploads of the maximum size in memory at a time."""


@dataclass(frozen=True)
class ServeOptions:
    """Options of serving. `limits` apply to uploads; `body_s`: timeout of an upload in seconds."""

    batching: BatchOptions = field(default_factory=BatchOptions)
    limits: ImageLimits = field(default_factory=lambda: ImageLimits(UPLOAD_MB << 20, formats=UPLOADS))
    top: int = 5
    body_s: float = 10.0


@dataclass(frozen=True)
class Served:
    """A model that is served. `compute` has one thread: the one that opened the session, because CUDA
    contexts belong to threads.
    """

    session: Session
    info: ModelInfo
    name: str
    compute: Executor

    def logits(self, images: np.ndarray) -> np.ndarray:
        """(N, classes) of (N, size, size, 3) uint8; in the compute thread."""
        return self.session.run(normalise(images, self.info.preprocessing))


Background = Callable[["Service"], contextlib.AbstractAsyncContextManager[None]]
"""Runs beside the requests while they are served."""


def build_app(service: Service, background: Background) -> Starlette:
    """The application."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service, background(service):
            yield

    routes = [
        Route("/classify", service.classify, methods=["POST"]),
        Route("/healthz", service.health),
        Route("/metrics", service.metrics_text),
    ]
    handlers = {HTTPException: service.http_error, Exception: service.internal_error}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False  # an unknown path is 404
    return app


class Service:
    """Answers requests with the model `served`, while it is entered (`async with`). `decode`: threads that
    decode uploads.
    """

    def __init__(self, served: Served, decode: Executor, options: ServeOptions) -> None:
        self.served, self.options, self.decode = served, options, decode
        self.lag = LoopLag()
        self._held_bytes = 0
        """Bytes of uploads that are received and not decoded yet."""
        self.metrics = Metrics(pending=lambda: self.batcher.pending)
        self.batcher = self._batcher(served)

    async def __aenter__(self) -> Service:
        await self.lag.start()
        await self.batcher.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Compute the waiting images, then stop."""
        await self.batcher.stop()
        await self.lag.stop()

    async def switch(self, served: Served) -> Served:
        """Answer new requests with `served`; returns the previous model when it has answered all its images
        and is no longer used.
        """
        before, retired = self.served, self.batcher
        batcher = self._batcher(served)
        await batcher.start()
        self.served, self.batcher = (
            served,
            batcher,
        )  # no await between the two: a request sees either both or none
        await retired.idle()
        await retired.stop()
        return before

    def _batcher(self, served: Served) -> Batcher:
        session = served.session
        self.metrics.tell_model(served.name, backend=session.backend, precision=session.precision)
        return Batcher(
            served.logits,
            served.compute,
            self.options.batching,
            observe=self.metrics.observe_batch,
            lag_s=self.lag.seconds,
        )

    async def classify(self, request: Request) -> Response:
        """Classify one encoded image in the body."""
        try:
            self.batcher.check(self._now())  # refuse it before reading it, if possible
            top = self._top(request)
            async with self._upload(request) as content:
                arrived = self._now()
                # The same model until the end, even if it is switched meanwhile.
                served, batcher = self.served, self.batcher
                with batcher.admit(arrived):
                    image = await self._decode(content, arrived, served, batcher)
                    answer = await batcher.answer(image, arrived)
        except SlimdeployError as error:
            raise HTTPException(400, str(error)) from error
        except ModelError as error:
            raise HTTPException(500, f"the model failed: {error}") from error
        except OverloadedError:
            raise HTTPException(503, "overloaded: try again later", {"Retry-After": "1"}) from None
        except ClosedError:
            raise HTTPException(503, "shutting down", {"Retry-After": "1"}) from None
        if not np.isfinite(answer.logits).all():
            raise HTTPException(500, NOT_FINITE)
        (found,) = top_classes(answer.logits[None], served.info.class_names, top)
        seconds = time.monotonic() - arrived
        self.metrics.latency.observe(seconds)
        return self._reply(
            200,
            {
                "model": served.name,
                "top": [vars(prediction) for prediction in found],
                "ms": {"total": round(1e3 * seconds, 3), "inference": round(answer.compute_ms, 3)},
                "batch": answer.batch,
            },
        )

    async def health(self, request: Request) -> Response:
        session = self.served.session
        document = {"status": "ok", "model": self.served.name, "backend": session.backend}
        return JSONResponse({**document, "precision": session.precision, "queue": self.batcher.pending})

    async def metrics_text(self, request: Request) -> Response:
        return Response(self.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._reply(error.status_code, {"error": error.detail}, error.headers)

    async def internal_error(self, request: Request, error: Exception) -> Response:
        return self._reply(500, {"error": f"internal error, {type(error).__name__}"})

    def _now(self) -> float:
        """Time at which the current request arrived (time.monotonic): it waited on its socket while the loop
        was busy.
        """
        return time.monotonic() - self.lag.seconds()

    def _reply(self, code: int, document: dict, headers: object = None) -> Response:
        self.metrics.count_answer(code)
        return JSONResponse(document, code, headers=headers)  # type: ignore[arg-type]

    def _top(self, request: Request) -> int:
        text = request.query_params.get("top", str(self.options.top))
        if not (text.isascii() and text.isdecimal() and 1 <= len(text) <= 6 and int(text) > 0):
            raise HTTPException(400, f"top={text[:20]}: expected a number, at least 1")
        return int(text)

    @contextlib.asynccontextmanager
    async def _upload(self, request: Request) -> AsyncIterator[bytes]:
        """The upload; its size, and the size of all uploads together, is limited."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in CONTENT_TYPES:
            raise HTTPException(415, f"Content-Type {kind or 'missing'}: send {', '.join(CONTENT_TYPES)}")
        limit = self.options.limits.bytes
        too_large = HTTPException(413, f"at most {limit} bytes are accepted")
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        content = bytearray()
        try:
            await self._receive(request, content, too_large)
            yield bytes(content)
        finally:
            self._held_bytes -= len(content)

    async def _receive(self, request: Request, content: bytearray, too_large: HTTPException) -> None:
        limit = self.options.limits.bytes
        try:
            with anyio.fail_after(self.options.body_s):
                async for part in request.stream():
                    if len(content) + len(part) > limit:
                        raise too_large
                    if self._held_bytes + len(part) > HELD_UPLOADS * limit:
                        raise OverloadedError
                    content += part
                    self._held_bytes += len(part)
        except TimeoutError:
            raise HTTPException(408, f"the image didn't arrive within {self.options.body_s:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the connection was closed before the image was complete") from None

    async def _decode(self, content: bytes, arrived: float, served: Served, batcher: Batcher) -> np.ndarray:
        geometry, limits = served.info.preprocessing.geometry, self.options.limits

        def decode() -> np.ndarray:
            if batcher.pending > 1 and batcher.too_late(arrived):
                raise OverloadedError
            return decode_image(content, "upload", geometry=geometry, limits=limits)

        return await asyncio.get_running_loop().run_in_executor(self.decode, decode)
