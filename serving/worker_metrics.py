"""What a worker counts, told to the server twice a second by a thread: each figure is a line that both must handle.

A batch of one event would wait for six lines otherwise. Counts are added up in between; durations are told one by one,
since the server makes the histogram.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

TELL_SECONDS = 0.5


class WorkerMetrics:
    """The figures of one version."""

    def __init__(self, labels: Sequence[str], *, tell_seconds: float = TELL_SECONDS) -> None:
        self._labels, self._tell_seconds = list(labels), tell_seconds
        self._lock = threading.Lock()
        self._counts = Counter[str]()
        self._durations: list[tuple[str, float]] = []
        self._server: Any = None  # TorchServe's own metrics, of the last batch
        self._is_some = threading.Event()
        threading.Thread(target=self._tell_regularly, name="worker metrics", daemon=True).start()

    def add(self, server: Any, counts: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        """The figures of a batch; zeros are not worth a line."""
        if server is not self._server:
            server.add_time = _forget  # TorchServe's own `PredictionTime`: a line an answer, which no rule reads
        with self._lock:
            self._server = server
            self._counts.update(counts)
            self._durations += seconds.items()
        self._is_some.set()

    def _tell_regularly(self) -> None:
        ended = threading.Event()  # never set: the thread ends with its process
        while self._is_some.wait():
            ended.wait(self._tell_seconds)
            self._is_some.clear()
            self._tell()

    def _tell(self) -> None:
        from ts.metrics.metric_type_enum import MetricTypes  # noqa: PLC0415  # TorchServe is there only where it serves

        with self._lock:
            server, counts, durations = self._server, self._counts, self._durations
            self._counts, self._durations = Counter(), []
        for name, count in counts.items():
            if count:
                server.get_metric(name, MetricTypes.COUNTER).add_or_update(count, self._labels)
        for name, duration in durations:
            server.get_metric(name, MetricTypes.HISTOGRAM).add_or_update(duration, self._labels)


def _forget(*_: object) -> None:
    """Say nothing."""
