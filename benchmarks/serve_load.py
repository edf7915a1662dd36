"""Loads a running `slimdeploy serve` with good and bad requests at a multiple of its capacity, and judges it.

    python -m slimdeploy.benchmarks.serve_load http://127.0.0.1:8080 IMAGE… --seconds 600 --limit-ms 100

First each image is classified alone: these answers are the right ones. Then the capacity is measured, by
clients that each send the next request as soon as the last is answered. Then requests are sent at
`--factor` times that rate, whether or not the ones before were answered (an open loop, so that waiting
doesn't slow the sender down). Every answer is compared, and the server's resident memory is watched. Exit
code 1 where an answer was wrong, the p99 of accepted requests is above the limit, or the memory grew.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MAX_GROWTH_MB = 20.0
"""Resident memory after the load, less that after its first tenth, by which the server's pools are filled."""

JPEG = {"Content-Type": "image/jpeg"}
BAD_REQUESTS: tuple[tuple[str, str, bytes, dict[str, str], int], ...] = (
    ("POST", "/classify", b"no image at all", JPEG, 400),
    ("POST", "/classify", b"", JPEG, 400),
    ("POST", "/classify", b"{}", {"Content-Type": "application/json"}, 415),
    ("POST", "/classify?top=-1", b"x", JPEG, 400),
    ("GET", "/classify", b"", {}, 405),
    ("GET", "/nowhere", b"", {}, 404),
)
"""Method, path, body, headers and the status each must get (or 503)."""


@dataclass
class Tally:
    """What happened, by all clients together."""

    codes: Counter[int] = field(default_factory=Counter)
    accepted_ms: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    """Of the same requests, what the server itself says: the rest is the way and the client."""
    wrong: list[str] = field(default_factory=list)
    broken: int = 0
    """Connections that ended without an answer."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client:
    """One keep-alive connection."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        self._connection: http.client.HTTPConnection | None = None

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(*self._address, timeout=30)
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            self._connection = None
            raise
        if response.will_close:
            self._connection.close()
            self._connection = None
        return response.status, content


def classify_alone(url: str, images: list[bytes]) -> list[int]:
    """The class of each image, from a server that does nothing else; repeated while it answers 503."""
    client, found = Client(url), []
    for image in images:
        for _ in range(100):
            code, content = client.send("POST", "/classify", image, JPEG)
            if code == 200:
                break
            time.sleep(0.05)
        else:
            raise SystemExit(f"serve_load: an image alone is answered {code}: {content[:200]!r}")
        found.append(json.loads(content)["top"][0]["index"])
    return found


def resident_mb(url: str) -> float:
    """The server's resident memory, MiB; raises HTTPException where it doesn't answer, as under load."""
    text = Client(url).send("GET", "/metrics", b"", {})[1].decode()
    found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
    if not found:
        raise http.client.HTTPException("the server doesn't tell its memory")
    return float(found[1]) / 2**20


def one_request(client: Client, images: list[bytes], right: list[int], tally: Tally, *, bad: bool) -> None:
    """Send a good request, or a bad one, and judge the answer."""
    if bad:
        method, path, body, headers, expected = random.choice(BAD_REQUESTS)
    else:
        which = random.randrange(len(images))
        method, path, body, headers, expected = "POST", "/classify", images[which], JPEG, 200
    started = time.perf_counter()
    try:
        code, content = client.send(method, path, body, headers)
    except (OSError, http.client.HTTPException):
        with tally.lock:
            tally.broken += 1
        return
    spent = 1e3 * (time.perf_counter() - started)
    with tally.lock:
        tally.codes[code] += 1
        if code not in (expected, 503):
            tally.wrong.append(f"{method} {path}: {code} instead of {expected}")
        elif code == 200:
            document = json.loads(content)
            tally.accepted_ms.append(spent)
            tally.server_ms.append(document["ms"]["total"])
            found = document["top"][0]["index"]
            if not bad and found != right[which]:
                tally.wrong.append(f"image {which}: class {found} instead of {right[which]}")


def closed_loop(url: str, images: list[bytes], right: list[int], *, clients: int, seconds: float) -> float:
    """Answers a second, when each client waits for its answer."""
    tally, end = Tally(), time.monotonic() + seconds

    def work() -> None:
        client = Client(url)
        while time.monotonic() < end:
            one_request(client, images, right, tally, bad=False)

    run_threads([work] * clients)
    return tally.codes[200] / seconds


def open_loop(
    url: str,
    images: list[bytes],
    right: list[int],
    *,
    rate: float,
    clients: int,
    seconds: float,
    bad_share: float,
) -> tuple[Tally, list[float]]:
    """Send `rate` requests a second from `clients` connections; also the server's memory in MiB, over the
    time.

    A client whose connection still waits for an answer when the next request is due sends it late:
    `clients` must be more than rate × the longest wait.
    """
    tally, memory, start = Tally(), [], time.monotonic()
    turns = iter(range(int(rate * seconds)))
    lock = threading.Lock()

    def work() -> None:
        client = Client(url)
        while True:
            with lock:
                turn = next(turns, None)
            if turn is None:
                return
            time.sleep(max(0.0, start + turn / rate - time.monotonic()))
            one_request(client, images, right, tally, bad=random.random() < bad_share)

    def watch() -> None:
        while time.monotonic() < start + seconds:
            time.sleep(min(5.0, seconds / 20))
            try:
                memory.append(resident_mb(url))
            except (OSError, http.client.HTTPException):
                continue  # refused under load: the next look tells

    run_threads([work] * clients + [watch])
    return tally, memory


def run_threads(functions: list[Any]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def judge(tally: Tally, memory: list[float], *, limit_ms: float) -> list[str]:
    """What is wrong, a line each; nothing where all is well."""
    said = list(dict.fromkeys(tally.wrong))[:10]
    if not tally.accepted_ms:
        return [*said, "no request was accepted"]
    p99 = statistics.quantiles([0.0, *tally.accepted_ms], n=100)[-1]
    if p99 > limit_ms:
        said.append(f"p99 of accepted requests is {p99:.1f} ms, above {limit_ms:g} ms")
    growth = growth_mb(memory)
    if growth > MAX_GROWTH_MB:
        said.append(f"the server's memory grew by {growth:.1f} MiB")
    return said


def percentiles(samples: list[float]) -> dict[str, float]:
    if not samples:
        return {}
    cuts = statistics.quantiles([0.0, *samples], n=100)
    return {name: round(cuts[i], 2) for name, i in (("p50", 49), ("p90", 89), ("p99", 98))}


def growth_mb(memory: list[float]) -> float:
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
    parser.add_argument("--slack-ms", type=float, default=50.0, help="for the client's own share of the time")
    asked = parser.parse_args(arguments)
    random.seed(0)
    images = [path.read_bytes() for path in asked.images]
    right = classify_alone(asked.url, images)
    capacity = closed_loop(asked.url, images, right, clients=8, seconds=min(10.0, asked.seconds / 5))
    tally, memory = open_loop(
        asked.url, images, right, rate=asked.factor * capacity, clients=asked.clients, seconds=asked.seconds,
        bad_share=asked.bad,
    )  # fmt: skip
    wrong = judge(tally, memory, limit_ms=asked.limit_ms + asked.slack_ms)
    document = {
        "seconds": asked.seconds, "capacity_per_s": round(capacity, 1), "factor": asked.factor,
        "requests": sum(tally.codes.values()), "codes": {str(c): n for c, n in sorted(tally.codes.items())},
        "connections_broken": tally.broken, "wrong_answers": len(tally.wrong),
        "accepted_ms": percentiles(tally.accepted_ms), "server_ms": percentiles(tally.server_ms),
        "limit_ms": asked.limit_ms,
        "memory_mb": [round(mb, 1) for mb in memory[:: max(1, len(memory) // 10)]],
        "failed": wrong,
    }  # fmt: skip
    print(json.dumps(document, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
