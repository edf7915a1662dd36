"""HTTP connections with timeouts: uvicorn's h11 protocol with additional limits.

uvicorn times out idle connections only after their first response, and answers invalid HTTP in plain text.
Here the head of a request has a timeout; if there are too many connections, a new one replaces the one that
was idle longest; every answer is JSON; and at shutdown a client that is sending its next request still gets
an answer.
"""

from __future__ import annotations

import asyncio
import json
import resource
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 5.0
"""Timeout in seconds for the head of a request: from the connection, or from its first byte."""
CONNECTIONS = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
"""Maximum number of open connections; the process needs as many file descriptors."""
MOST_CONNECTIONS = CONNECTIONS * 3 // 2
"""The same with those that wait for a place, or that are closed after an answer."""
IDLE_S = 0.5
"""Seconds after which an idle connection may be closed for a new one. The first request of a younger one may
have arrived, but not be read yet.
"""
WAIT_S = 0.02
"""Interval in seconds at which a connection without a place looks for one."""
LINGER_S = 1.0
"""Seconds for which an idle connection stays open after shutdown has begun, and for which a refused client
may go on sending: closing a socket with unread data would discard the answer.
"""

_CLOSE = (b"connection", b"close")


class Connection(H11Protocol):
    """One connection to a client."""

    _head: asyncio.TimerHandle | None = None
    _ending = False
    _waiting = False
    """For a place; nothing is read meanwhile."""
    _refused = False
    _idle_since = 0.0
    """When it was opened, or its last request was answered."""

    @staticmethod
    def count(code: int) -> None:
        """Called with the status of each answer that the application doesn't know of."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._await_head()
        if len(self.connections) > CONNECTIONS:
            transport.pause_reading()
            self._make_place()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._answering and self._head is None:
            self._await_head()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def handle_events(self) -> None:
        super().handle_events()
        if self._answering:
            self._stop_waiting()
            if self._ending:
                self._close_after_answer()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP."""
        if self._answering:
            self._break_off()
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "not an HTTP/1.1 request")

    def _break_off(self) -> None:
        """Answer invalid HTTP within a request, whose answer may have begun."""
        if self.cycle.response_started:
            self.transport.close()
        else:
            # The application answers too, and counts its answer, which is no longer sent.
            self.cycle.disconnected = True
            self._send(HTTPStatus.BAD_REQUEST, "the request's body is not HTTP/1.1")

    def shutdown(self) -> None:
        """Called when the server shuts down."""
        self._ending = True
        if self._answering:
            self._close_after_answer()
        else:
            self.loop.call_later(LINGER_S, self._close_idle)

    @property
    def _answering(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _idle(self) -> bool:
        """Whether a new connection may replace this one."""
        return not (self._answering or self._waiting or self._refused or self.transport.is_closing())

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_S, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _head_is_late(self) -> None:
        self._head = None
        if self.conn.trailing_data[0] and not self.transport.is_closing():
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request's head didn't arrive within {HEAD_S:g} s")
        else:
            self._close_idle()

    def _close_idle(self) -> None:
        if not self._answering and not self.transport.is_closing():
            self.transport.close()

    def _close_after_answer(self) -> None:
        self.cycle.keep_alive = False
        if not self.cycle.response_started:
            self.cycle.default_headers = [*self.cycle.default_headers, _CLOSE]

    def _make_place(self) -> None:
        """Close the connection that was idle longest; this one if all are busy. Until then it isn't read."""
        if self.transport.is_closing():
            return
        self._waiting = True  # thus it isn't idle itself
        idle = [one for each in self.connections if (one := cast("Connection", each))._idle]
        oldest = min(idle, key=lambda one: one._idle_since, default=None)
        others = len(self.connections) - 1
        may_close = oldest is not None and self.loop.time() - oldest._idle_since >= IDLE_S
        if oldest and not may_close and CONNECTIONS <= others < MOST_CONNECTIONS:
            self.loop.call_later(WAIT_S, self._make_place)
            return
        self._waiting = False
        self.transport.resume_reading()
        if others < CONNECTIONS:
            return
        if oldest and may_close:
            oldest.transport.close()
        else:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections: try again later")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer what never reaches the application, and close the connection."""
        self.count(status.value)
        self._send(status, reason)

    def _send(self, status: HTTPStatus, reason: str) -> None:
        """Send a response without a request, and close the connection."""
        headers: list[Any] = [(b"content-type", b"application/json"), _CLOSE]
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers.append((b"retry-after", b"1"))
        content = json.dumps({"error": reason}).encode()
        headers.append((b"content-length", str(len(content)).encode()))
        head = h11.Response(status_code=status, headers=headers, reason=status.phrase.encode())
        for event in (head, h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        self._stop_waiting()
        if len(self.connections) < MOST_CONNECTIONS:
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()


def counted(count: Callable[[int], None]) -> type[Connection]:
    """Connections that call `count` with the status of each answer that the application doesn't know of.
    A class, because uvicorn makes the connections.
    """
    return type("CountedConnection", (Connection,), {"count": staticmethod(count)})
