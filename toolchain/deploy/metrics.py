"""The server's metrics, in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """All metrics of one server, without globals, so that one process can have several servers."""

    def __init__(self, *, pending: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "slimdeploy_requests", "Requests answered, by HTTP status", ["code"], registry=self.registry
        )
        self.latency = Histogram(
            "slimdeploy_request_seconds",
            "From the arrival of an accepted request to its answer",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.inference = Histogram(
            "slimdeploy_inference_seconds", "One batch", buckets=SECONDS, registry=self.registry
        )
        self.batch = Histogram(
            "slimdeploy_batch_images", "Images computed together", buckets=IMAGES, registry=self.registry
        )
        queue = Gauge(
            "slimdeploy_queue_images", "Images admitted and not yet answered", registry=self.registry
        )
        queue.set_function(pending)
        self._about = Info("slimdeploy_model", "What is served", registry=self.registry)
        self.reloads = Counter(
            "slimdeploy_reloads", "Changes to another version, by result", ["result"], registry=self.registry
        )

    def tell_model(self, model: str, *, backend: str, precision: str) -> None:
        """Set the served model."""
        self._about.info({"model": model, "backend": backend, "precision": precision})

    def count_answer(self, code: int) -> None:
        """Count an answer with the status `code`."""
        self.requests.labels(str(code)).inc()

    def observe_batch(self, images: int, seconds: float) -> None:
        self.batch.observe(images)
        self.inference.observe(seconds)

    def render(self) -> bytes:
        """The response of `GET /metrics` (exposition format 0.0.4)."""
        return generate_latest(self.registry)
