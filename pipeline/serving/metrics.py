"""Prometheus metrics of the server.

With `PROMETHEUS_MULTIPROC_DIR` in the environment, all processes of a server write to files in that folder, and each of
them reports the sums. prometheus_client reads the variable when it is imported.
"""

import os

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from pipeline.serving.served_model import ServedModel
from pipeline.serving.settings import METRICS_VARIABLE

SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 5, 10)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONFIDENCE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        own = self._registry = CollectorRegistry()
        self.requests = Counter("serve_requests", "Requests", ["path", "status"], registry=own)
        self.seconds = Histogram("serve_request_seconds", "Time to answer", ["path"], buckets=SECONDS, registry=own)
        self.batches = Histogram("serve_batch_images", "Images answered together", buckets=IMAGES, registry=own)
        self.predictions = Counter("serve_predictions", "Most probable classes", ["version", "class"], registry=own)
        self.confidence = Histogram(
            "serve_confidence", "Probability of the most probable class", buckets=CONFIDENCE, registry=own
        )
        self.waiting = Gauge(
            "serve_waiting_images", "Images that wait for the model", registry=own, multiprocess_mode="livesum"
        )
        self.models = Gauge(
            "serve_model", "Processes that answer with a version", ["version", "sha256"], registry=own,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.checked = Gauge(
            "serve_champion_checked_timestamp_seconds", "Last answer of the registry", registry=own,
            multiprocess_mode="livemin",
        )  # fmt: skip
        self.swaps = Counter("serve_model_loads", "New versions by outcome", ["outcome"], registry=own)
        self.log_dropped = Gauge(
            "serve_traffic_log_dropped", "Requests that the traffic log lost", registry=own,
            multiprocess_mode="livesum",
        )  # fmt: skip

    def observe_batch(self, model: ServedModel, probabilities: np.ndarray) -> None:
        """Count the answers to a batch: float32 [n, classes]."""
        self.batches.observe(len(probabilities))
        labels, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            self.predictions.labels(model.version, model.classes[label]).inc(int(count))
        for value in confidence.tolist():
            self.confidence.observe(value)

    def export(self) -> bytes:
        """Return the metrics of all processes in Prometheus's text format."""
        if not os.environ.get(METRICS_VARIABLE):
            return generate_latest(self._registry)
        whole = CollectorRegistry()
        MultiProcessCollector(whole)
        return generate_latest(whole)
