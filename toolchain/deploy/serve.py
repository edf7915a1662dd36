"""Run the HTTP server until SIGTERM or SIGINT; then answer the accepted requests and end."""

from __future__ import annotations

import functools
import io
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from slimdeploy.toolchain.deploy.connections import counted
from slimdeploy.toolchain.deploy.heap import return_large_blocks
from slimdeploy.toolchain.deploy.http import ServeOptions, Service, build_app
from slimdeploy.toolchain.deploy.images import decode_image
from slimdeploy.toolchain.deploy.metrics import Metrics
from slimdeploy.toolchain.deploy.reload import Source, close, reloading
from slimdeploy.toolchain.deploy.running import Registration
from slimdeploy.toolchain.errors import SlimdeployError
from slimdeploy.toolchain.preprocessing import Geometry
from slimdeploy.toolchain.runtime.session import SessionOptions

DECODERS = 4
"""Number of threads that decode uploads; each may hold a decoded photo."""
DRAIN_S = 30
"""Maximum time for accepted requests after SIGTERM, in seconds."""
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Address:
    """The address to listen on. Port 0 selects a free port."""

    host: str = "127.0.0.1"
    port: int = 8080


def serve(
    model: Path | None,
    root: Path,
    address: Address,
    options: ServeOptions,
    *,
    threads: int | None = None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Serve the model file, or the version deployed in `root` and later ones; returns the number of responses
    by status at the end.

    `say` is called with one line when requests are answered, and at each change of the model. Raises
    SlimdeployError if the model can't be opened or the address can't be used.
    """
    return_large_blocks()
    listener = _listen(address)
    source = Source(model, root, SessionOptions(threads=threads, spin=False), options.batching.batch)
    with listener, ThreadPoolExecutor(min(os.cpu_count() or 1, DECODERS)) as decode:
        served = source.open()
        host, port = listener.getsockname()[:2]
        url = f"http://{_in_url(host)}:{port}"
        registration = Registration(root, url) if model is None else None
        service = Service(served, decode, options)
        try:
            decode_one = functools.partial(decode_image, geometry=Geometry(8), limits=options.limits)
            decode.submit(decode_one, _an_image(), "image").result()
            config = uvicorn.Config(
                build_app(service, reloading(source, registration, lambda line: say(f"{url} {line}"))),
                http=counted(service.metrics.count_answer),
                ws="none",
                loop="asyncio",
                lifespan="on",
                # No log line for invalid HTTP or for requests over the limit: clients must not be able to
                # fill the log, or to block a server whose log is not read.
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=DRAIN_S,
            )
            if registration:
                registration.tell(served.name)
            say(f"{url} serves {served.name}, {served.session.precision} on {served.session.backend}")
            _run_until_signal(uvicorn.Server(config), listener)
            return {"model": service.served.name, "answers": _answers(service.metrics)}
        finally:
            if registration:
                registration.remove()
            close(service.served)


def _run_until_signal(server: uvicorn.Server, listener: socket.socket) -> None:
    """uvicorn stops on SIGTERM and SIGINT and raises them again afterwards; they are ignored then. SIGHUP is
    handled only while requests are served, and is ignored before and after.
    """
    kept = {number: signal.signal(number, lambda *_: None) for number in _HANDLED}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.create_server((address.host, address.port), family=family, backlog=256)
        # Inherited by connections. asyncio sets it only if getaddrinfo reported TCP; without it the body of a
        # response waits 40 ms until the client has acknowledged the head (Nagle and delayed ACK).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        reason = said.partition(" (while")[0]  # Python repeats the address
        raise SlimdeployError(
            f"cannot listen on {address.host}:{address.port}: {reason}; pass another `port` or `host`"
        ) from error


def _an_image() -> bytes:
    """A small JPEG, to load the libraries for decoding."""
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    return content.getvalue()


def _answers(metrics: Metrics) -> dict[str, int]:
    samples = [sample for family in metrics.requests.collect() for sample in family.samples]
    return {s.labels["code"]: int(s.value) for s in samples if s.name.endswith("_total")}


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
