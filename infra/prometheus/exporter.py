"""`python -m infra.prometheus.exporter`: the warehouse's numbers, and the limits of params.yaml, for Prometheus.

Every scrape reads anew, in one snapshot, by the role `observer`. What cannot be read is a failed scrape and not an old
number: Prometheus then says that the exporter is down, which has an alert of its own.
"""

import argparse
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import start_http_server
from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adapters.warehouse import Warehouse
from infra.prometheus.metric_query import MetricQuery
from infra.prometheus.queries import CHAMPIONS, DECISIONS, QUERIES, SLICES
from infra.prometheus.stream_queries import STREAM_QUERIES
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases

_PATIENCE_SECONDS = 2.0  # less than a scrape may take
_CLEAN_UNTIL = "select use_case, max(partition_start) as newest from batches where status = 'clean' group by 1"


@dataclass(frozen=True, kw_only=True, eq=False)  # a registry keeps it by identity
class WarehouseCollector(Collector):
    """All numbers of the warehouse, and the limits they are judged by."""

    warehouse: Warehouse
    declared: Mapping[str, UseCase]

    def collect(self) -> Iterator[Metric]:
        """Every metric, as of one moment."""
        with self.warehouse.transaction(snapshot=True) as at:
            at.execute(_CLEAN_UNTIL)
            found = make_limits(self.declared, {row[0]: row[1] for row in at.fetchall()})
            sliced = [(name, slice_) for name, use_case in self.declared.items() for slice_ in use_case.gate.slices]
            lags = (list(self.declared), [u.time.label_lag for u in self.declared.values()])
            asked: list[tuple[MetricQuery, tuple[list[Any], ...] | None]] = [
                (CHAMPIONS, (list(self.declared), [u.paused for u in self.declared.values()])),
                (DECISIONS, lags),
                (SLICES, (*lags, [name for name, _ in sliced], [slice_ for _, slice_ in sliced])),
                *((query, None) for query in (*QUERIES, *STREAM_QUERIES)),
            ]
            for query, parameters in asked:
                at.execute(query.sql, parameters)
                found += make_families(query, at.fetchall())
        yield from found


def make_families(query: MetricQuery, rows: list[Any]) -> list[Metric]:
    """The metrics of a query's rows."""
    made: list[Metric] = []
    for name, says in query.metrics.items():
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(f"windsock_{name}", says, labels=query.labels)
        for row in rows:
            if row[name] is not None:
                family.add_metric([str(row[label]) for label in query.labels], float(row[name]))
        made.append(family)
    return made


def make_limits(declared: Mapping[str, UseCase], newest: Mapping[str, datetime]) -> list[Metric]:
    """What params.yaml says the numbers have to keep to; `newest` is the start of each newest clean partition."""
    of_use_case = []
    for name, u in declared.items():
        ended = u.source.last_partition is not None and newest.get(name, datetime.min.replace(tzinfo=UTC)).date() >= (
            u.source.last_partition
        )
        of_use_case.append(
            {
                "use_case": name,
                "partition_seconds": None if ended else u.source.partition_days * 86400,
                "drifted_features_limit": u.monitor.min_drifted_features,
                "retrains_30_days_limit": u.monitor.monthly_retrains,
                **_find_stream_limits(u),
            }
        )
    of_table = [
        {"use_case": name, "table": table, "quarantined_share_limit": setting.max_quarantined_share}
        for name, u in declared.items()
        for table, setting in u.source.tables.items()
    ]
    of_error = [
        {"use_case": name, "outcome": outcome, "error_cost": cost}
        for name, u in declared.items()
        if u.endpoint and u.endpoint.costs
        for outcome, cost in (("missed", u.endpoint.costs.missed), ("needless", u.endpoint.costs.needless))
    ]
    said = {
        "partition_seconds": "Length of a partition, where more are expected: none once the source has ended",
        "drifted_features_limit": "Features beyond their thresholds from which monitoring calls it drift",
        "retrains_30_days_limit": "Retrains that monitoring allows itself in 30 days",
        "stream_horizon_seconds": "So far behind the clock all of the source is known; none where it has its own clock",
        "answer_budget_seconds": "So long after its prediction time an event is answered in time",
    }
    return [
        *make_families(MetricQuery(said, ("use_case",), ""), of_use_case),
        *make_families(
            MetricQuery(
                {"quarantined_share_limit": "Share of quarantined rows from which a partition is blocked"},
                ("use_case", "table"),
                "",
            ),
            of_table,
        ),
        *make_families(
            MetricQuery(
                {"error_cost": "What a wrong decision costs, in the unit of params.yaml"}, ("use_case", "outcome"), ""
            ),
            of_error,
        ),
    ]


def _find_stream_limits(use_case: UseCase) -> dict[str, float | None]:
    is_by_clock = use_case.source.follow is not None and use_case.source.watermark is None
    answers = use_case.endpoint.answers if use_case.endpoint else None
    return {
        "stream_horizon_seconds": use_case.source.horizon_seconds if is_by_clock else None,
        "answer_budget_seconds": answers.budget.total_seconds() if answers else None,
    }


def make_registry(dsn: str, params: Path) -> CollectorRegistry:
    """What is answered to a scrape."""
    found = CollectorRegistry(auto_describe=False)  # or it would read the warehouse to learn its own names
    warehouse = Warehouse(dsn, patience_seconds=_PATIENCE_SECONDS)
    found.register(WarehouseCollector(warehouse=warehouse, declared=use_cases(params)))
    return found


def main() -> None:
    """Serve until told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9187)
    chosen = parser.parse_args()
    numbers = make_registry(
        os.environ["WINDSOCK_OBSERVER_DSN"], Path(os.environ.get("WINDSOCK_PARAMS") or REPOSITORY / "params.yaml")
    )
    server, _ = start_http_server(chosen.port, chosen.address, registry=numbers)
    print(f"metrics on http://{chosen.address}:{chosen.port}/metrics", flush=True)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    ended.wait()
    server.shutdown()


if __name__ == "__main__":
    main()
