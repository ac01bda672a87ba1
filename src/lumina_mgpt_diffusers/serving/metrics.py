# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a server tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from .host import EngineHost


SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)

GAUGES = {
    "running": ("num_running", "Answers in the batch"),
    "waiting": ("num_waiting", "Answers that wait for a place in the batch"),
}
COUNTERS = {
    "steps": ("num_steps", "Steps of the engine"),
    "codes": ("num_codes", "Codes of finished images"),
    "text_tokens": ("num_text_tokens", "Tokens of finished answers of chats"),
    "finished": ("num_finished", "Answers that were finished"),
    "cancelled": ("num_cancelled", "Answers whose client left or whose time was over"),
    "failed": ("num_failed", "Answers that the engine failed on"),
}


class HostCollector:
    """Reads the counts of a host when they are asked for."""

    def __init__(self, host: EngineHost) -> None:
        self._counts = host.counts

    def collect(self) -> list[Metric]:
        gauges = [
            GaugeMetricFamily(f"lumina_mgpt_{name}", text, value=getattr(self._counts, attribute))
            for name, (attribute, text) in GAUGES.items()
        ]
        return gauges + [
            CounterMetricFamily(f"lumina_mgpt_{name}", text, value=getattr(self._counts, attribute))
            for name, (attribute, text) in COUNTERS.items()
        ]


class ServerMetrics:
    """
    The metrics of one server, in a registry of its own.

    Args:
        host ([`EngineHost`]): The host that it serves.
    """

    def __init__(self, host: EngineHost) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(HostCollector(host))
        labels = ("route", "status")
        self._requests = Counter("lumina_mgpt_requests", "Requests answered", labels, registry=self.registry)
        self._seconds = Histogram(
            "lumina_mgpt_request_seconds", "Time of requests", ("route",), buckets=SECONDS, registry=self.registry
        )
        self.first_rows = Histogram(
            "lumina_mgpt_first_row_seconds",
            "Time to the first row of an image that is streamed",
            buckets=SECONDS,
            registry=self.registry,
        )

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
