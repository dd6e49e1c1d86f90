"""What a worker counts reaches the server, whole and not at once."""

from collections import Counter

from serving.worker_metrics import WorkerMetrics
from tests.waiting import until


class Server:
    """TorchServe's metrics: what it was told."""

    def __init__(self) -> None:
        self.add_time = self._add_time
        self.counted, self.lines, self.seconds = Counter[str](), 0, list[float]()

    def _add_time(self, *_: object) -> None:
        self.lines += 1

    def get_metric(self, name: str, _: object) -> "Told":
        return Told(self, name)


class Told:
    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name

    def add_or_update(self, value: float, labels: list[str]) -> None:
        assert labels == ["flights", "7"]
        self._server.lines += 1
        if self._name == "seconds":
            self._server.seconds.append(value)
        else:
            self._server.counted[self._name] += int(value)


def test_counts_are_added_up_durations_told_one_by_one_and_zeros_not_at_all() -> None:
    server, metrics = Server(), WorkerMetrics(["flights", "7"], tell_seconds=0.2)
    for number in range(50):
        metrics.add(server, {"requests": 1, "refused": 0}, {"seconds": float(number)})
    until(lambda: len(server.seconds) == 50)
    assert server.counted == {"requests": 50}
    assert 50 < server.lines < 100  # the counts of several batches are one line
    told = server.lines
    server.add_time("PredictionTime", 1.0)  # what TorchServe does after each batch, and no rule reads
    assert server.lines == told
    metrics.add(server, {"requests": 2}, {})  # and it goes on
    until(lambda: server.counted["requests"] == 52)
