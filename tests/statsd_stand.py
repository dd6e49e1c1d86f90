"""Stands for prom/statsd-exporter, which no package has: Airflow's recorded packets as it would answer a scrape.

Its rules, as far as the packets need them: dots become underscores, tags become labels, milliseconds become seconds in
a histogram. Every scrape counts the packets once more, so that rates are not 0.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.settings import REPOSITORY

PACKETS = REPOSITORY / "tests" / "infra" / "airflow.statsd"
_MAPPING = yaml.safe_load((REPOSITORY / "infra" / "prometheus" / "statsd.yaml").read_text())
BUCKETS = _MAPPING["defaults"]["histogram_options"]["buckets"]
Labels = tuple[tuple[str, str], ...]


@dataclass(eq=False)
class Recorded(Collector):
    """The packets of a file."""

    path: Path = PACKETS
    scrapes: int = field(default=0, init=False)

    def collect(self) -> Iterator[Metric]:
        """One family a name."""
        self.scrapes += 1
        found: dict[tuple[str, str], dict[Labels, list[float]]] = defaultdict(lambda: defaultdict(list))
        for line in self.path.read_text().splitlines():
            name, labels, value, kind = _read(line)
            found[name, kind][labels].append(value)
        for (name, kind), samples in found.items():
            yield self._family(name, kind, samples)

    def _family(self, name: str, kind: str, samples: dict[Labels, list[float]]) -> Metric:
        names = [label for label, _ in next(iter(samples))]
        if kind == "ms":
            histogram = HistogramMetricFamily(name, name, labels=names)
            for labels, values in samples.items():
                seconds = [value / 1000 for value in values]
                below = [(str(b), float(self.scrapes * sum(s <= b for s in seconds))) for b in BUCKETS]
                buckets = [*below, ("+Inf", float(self.scrapes * len(seconds)))]
                histogram.add_metric([v for _, v in labels], buckets, self.scrapes * sum(seconds))
            return histogram
        family = Metric(name, name, "unknown")  # its counters have no _total
        for labels, values in samples.items():
            family.add_sample(name, dict(labels), values[-1] if kind == "g" else self.scrapes * sum(values))
        return family


def _read(line: str) -> tuple[str, Labels, float, str]:
    said, _, value = line.rpartition(":")
    number, kind = value.split("|")
    name, *tags = said.split(",")
    labels = tuple(sorted((key, text) for key, _, text in (tag.partition("=") for tag in tags)))
    return name.replace(".", "_"), labels, float(number), kind
