"""Load test of a running `slimdeploy serve` with valid and invalid requests, above its capacity.

    python -m slimdeploy.benchmarks.serve_load http://127.0.0.1:8080 IMAGE… --seconds 600 --limit-ms 100

First each image is classified alone, which gives the expected answers. Then the capacity is measured by
clients that send each request after the answer to the previous one. Then requests are sent at `--factor`
times that rate without waiting for answers (an open loop, so that slow answers don't reduce the rate). Every
answer is compared, and the server's resident memory is recorded. The exit code is 1 if an answer was wrong,
if the p99 of accepted requests is above the limit, or if the memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import anyio

TIMEOUT_S = 30.0
_LENGTH = re.compile(rb"content-length: (\d+)")
JPEG = {"Content-Type": "image/jpeg"}
BAD_REQUESTS: tuple[tuple[str, str, bytes, dict[str, str], int], ...] = (
    ("POST", "/classify", b"no image at all", JPEG, 400),
    ("POST", "/classify", b"", JPEG, 400),
    ("POST", "/classify", b"{}", {"Content-Type": "application/json"}, 415),
    ("POST", "/classify?top=-1", b"x", JPEG, 400),
    ("GET", "/classify", b"", {}, 405),
    ("GET", "/nowhere", b"", {}, 404),
)
"""Method, path, body, headers and the expected status (or 503)."""


@dataclass(frozen=True)
class Request:
    """The bytes of a request, and the expected answer: the status, and the class for an image."""

    what: str
    content: bytes
    code: int
    label: int | None = None

    @classmethod
    def of(cls, method: str, path: str, body: bytes, headers: dict[str, str], code: int) -> Request:
        lines = [f"{method} {path} HTTP/1.1", "Host: server", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        return cls(f"{method} {path}", head.encode() + body, code)


@dataclass
class Tally:
    """The results of all clients."""

    codes: Counter[int] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    """The server's own figure for these requests; the difference is caused by network and client."""
    late_ms: list[float] = field(default_factory=list)
    """Delay of each request after its due time, caused by the clients."""
    wrong: list[str] = field(default_factory=list)
    broken: int = 0
    """Connections that were closed without an answer."""


class Client:
    """One keep-alive connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, content: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; raises OSError or EOFError if none comes."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        try:
            writer.write(content)
            with anyio.fail_after(TIMEOUT_S):
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                body = await reader.readexactly(int(_LENGTH.search(head)[1]))  # type: ignore[index]
        except BaseException:
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def classify_alone(url: str, images: list[bytes]) -> list[Request]:
    """A request for each image, with its class from an otherwise idle server; repeated while the answer is
    503.
    """
    client, found = Client(url), []
    for image in images:
        request = Request.of("POST", "/classify", image, JPEG, 200)
        for _ in range(100):
            code, content = await client.send(request.content)
            if code == 200:
                break
            await asyncio.sleep(0.05)
        else:
            raise SystemExit(f"serve_load: an image alone is answered {code}: {content[:200]!r}")
        found.append(replace(request, label=json.loads(content)["top"][0]["index"]))
    client.close()
    return found


async def resident_mb(client: Client) -> float | None:
    """The server's resident memory in MiB; None if it doesn't answer, e.g. under load."""
    try:
        _, content = await client.send(Request.of("GET", "/metrics", b"", {}, 200).content)
    except (OSError, EOFError):
        return None
    found = re.search(r"^process_resident_memory_bytes (\S+)$", content.decode(), re.MULTILINE)
    return float(found[1]) / 2**20 if found else None


async def one_request(client: Client, request: Request, tally: Tally) -> None:
    """Send a request and check the answer."""
    started = time.perf_counter()
    try:
        code, content = await client.send(request.content)
    except (OSError, EOFError):
        tally.broken += 1
        return
    spent = 1e3 * (time.perf_counter() - started)
    tally.codes[code] += 1
    if code not in (request.code, 503):
        tally.wrong.append(f"{request.what}: {code} instead of {request.code}")
    elif code == 200:
        document = json.loads(content)
        tally.accepted_ms.append(spent)
        tally.server_ms.append(document["ms"]["total"])
        found = document["top"][0]["index"]
        if found != request.label:
            tally.wrong.append(f"an image: class {found} instead of {request.label}")


async def closed_loop(url: str, good: list[Request], *, clients: int, seconds: float) -> float:
    """Answers per second if each client waits for its answer."""
    tally, end = Tally(), time.monotonic() + seconds

    async def work() -> None:
        client = Client(url)
        while time.monotonic() < end:
            await one_request(client, random.choice(good), tally)
        client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return tally.codes[200] / seconds


async def open_loop(
    url: str, good: list[Request], *, rate: float, clients: int, seconds: float, bad_share: float
) -> tuple[Tally, list[float]]:
    """Send `rate` requests per second over `clients` connections; also returns the server's memory in MiB
    over time.

    A client that still waits for an answer when its next request is due sends it late: `clients` must be more
    than rate × the longest wait.
    """
    tally, memory, start = Tally(), [], time.monotonic()
    turns = iter(range(int(rate * seconds)))
    bad = [Request.of(*each) for each in BAD_REQUESTS]

    async def work() -> None:
        client = Client(url)
        for turn in turns:
            due = start + turn / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tally.late_ms.append(1e3 * (time.monotonic() - due))
            await one_request(client, random.choice(bad if random.random() < bad_share else good), tally)
        client.close()

    async def watch() -> None:
        client = Client(url)
        while time.monotonic() < start + seconds:
            await asyncio.sleep(min(5.0, seconds / 20))
            if (found := await resident_mb(client)) is not None:
                memory.append(found)
        client.close()

    await asyncio.gather(watch(), *(work() for _ in range(clients)))
    return tally, memory


def judge(tally: Tally, memory: list[float], *, limit_ms: float, max_growth_mb: float) -> list[str]:
    """The problems, one per line; empty if there are none."""
    said = list(dict.fromkeys(tally.wrong))[:10]
    if not tally.accepted_ms:
        return [*said, "no request was accepted"]
    p99 = statistics.quantiles([0.0, *tally.accepted_ms], n=100)[-1]
    if p99 > limit_ms:
        said.append(f"p99 of accepted requests is {p99:.1f} ms, above {limit_ms:g} ms")
    growth = growth_mb(memory)
    if growth > max_growth_mb:
        said.append(f"the server's memory grew by {growth:.1f} MiB")
    return said


def percentiles(samples: list[float]) -> dict[str, float]:
    if not samples:
        return {}
    cuts = statistics.quantiles([0.0, *samples], n=100)
    return {name: round(cuts[i], 2) for name, i in (("p50", 49), ("p90", 89), ("p99", 98))}


def growth_mb(memory: list[float]) -> float:
    """MiB at the end minus those after the first tenth of the time, when the server's pools are filled."""
    settled = memory[len(memory) // 10 :]
    return settled[-1] - settled[0] if len(settled) > 1 else 0.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--factor", type=float, default=2.0, help="times the capacity")
    parser.add_argument("--bad", type=float, default=0.2, help="share of bad requests")
    parser.add_argument("--limit-ms", type=float, default=100.0, help="the server's --latency-ms")
    parser.add_argument("--slack-ms", type=float, default=10.0, help="allowance for the client's own time")
    parser.add_argument("--max-growth-mb", type=float, default=5.0, help="of the server's memory")
    return asyncio.run(load(parser.parse_args(arguments)))


async def load(asked: argparse.Namespace) -> int:
    """Run the command line, print the result, and return the exit code."""
    random.seed(0)
    images = [path.read_bytes() for path in asked.images]
    good = await classify_alone(asked.url, images)
    capacity = await closed_loop(asked.url, good, clients=8, seconds=min(10.0, asked.seconds / 5))
    tally, memory = await open_loop(
        asked.url, good, rate=asked.factor * capacity, clients=asked.clients, seconds=asked.seconds,
        bad_share=asked.bad,
    )  # fmt: skip
    wrong = judge(tally, memory, limit_ms=asked.limit_ms + asked.slack_ms, max_growth_mb=asked.max_growth_mb)
    document = {
        "seconds": asked.seconds, "capacity_per_s": round(capacity, 1), "factor": asked.factor,
        "requests": sum(tally.codes.values()), "codes": {str(c): n for c, n in sorted(tally.codes.items())},
        "connections_broken": tally.broken, "wrong_answers": len(tally.wrong),
        "accepted_ms": percentiles(tally.accepted_ms), "server_ms": percentiles(tally.server_ms),
        "sent_late_ms": percentiles(tally.late_ms),
        "limit_ms": asked.limit_ms,
        "memory_mb": [round(mb, 1) for mb in memory[:: max(1, len(memory) // 10)]],
        "failed": wrong,
    }  # fmt: skip
    print(json.dumps(document, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
