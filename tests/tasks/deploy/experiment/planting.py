"""An experiment of version 8 against 7, a gateway of ten lines, and what the tables hold."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from psycopg2.extras import execute_values

from adapters.gateway import GatewayRecord, Route
from pipeline.online import ExperimentSettings
from tasks.deploy.experiment import experiment

EVENT_TIME = datetime(2013, 5, 1, tzinfo=UTC)
DECLARED = ExperimentSettings(
    mode="fixed", share=0.3, alpha=0.05, min_effect=0.0, min_events=300, max_events=3000, max_harm=0.3,
    max_error_share=0.02, max_degraded_share=0.1,
)  # fmt: skip
_ANSWERS = """
insert into online_answers (use_case, request_id, position, model_version, slot, client, entity_key, event_time,
    prediction_time, score, decision, degraded, reasons, server_ms, request, features, answered_at, entity_id) values %s
"""
_OUTCOMES = """
insert into outcomes (use_case, entity_key, event_time, label, label_time) values %s on conflict do nothing
"""


class Killed(BaseException):
    """What kill -9 looks like from inside: nothing after it happens."""


class FakeGateway:
    """One use case's gateway, whichever it is asked about."""

    def __init__(self) -> None:
        self.now, self.answered, self.dies = Route("7"), [], False

    def route(self, _: str) -> Route:
        return self.now

    def set_route(self, _: str, route: Route) -> None:
        if self.dies:
            raise Killed
        self.now = route

    def records(self, _: str, since: datetime) -> list[GatewayRecord]:
        return [record for record in self.answered if record.at >= since]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer about an event, which its key names; without a label its outcome is not known."""

    version: str
    key: str
    at: datetime
    request: str | None = None  # None: of its own
    entity: str | None = None
    decision: bool = True
    degraded: bool = False
    label: float | None = 1.0
    predicted: datetime = EVENT_TIME


def plant(outside, answers: Iterable[Answer]) -> None:
    """Write answers and outcomes down."""
    given = list(answers)
    asked = [
        ("flights", one.request or one.key, number if one.request else 0, one.version,
         "candidate" if one.version == "8" else "stable", "test", one.key, EVENT_TIME, one.predicted, 0.1, one.decision,
         one.degraded, [], 1.0, "{}", "{}", one.at, one.entity)
        for number, one in enumerate(given)
    ]  # fmt: skip
    with outside.warehouse.transaction() as cursor:
        execute_values(cursor, _ANSWERS, asked)
    tell(outside, given)


def tell(outside, answers: Iterable[Answer]) -> None:
    """Write outcomes down."""
    told = [("flights", one.key, EVENT_TIME, one.label, EVENT_TIME) for one in answers if one.label is not None]
    with outside.warehouse.transaction() as cursor:
        execute_values(cursor, _OUTCOMES, told)


def draw_keys(
    keys: int,
    *,
    share: float,
    seed: int,
    at: datetime,
    costly: float = 0.3,
    kept: float = 1.0,
    told: float = 1.0,
) -> Iterator[Answer]:
    """An event a key, 10 ms apart, by chance answered by the treatment, which misses a share `costly` of them.

    Of the treatment's rows a share `kept` is in the log, and of its outcomes a share `told` is known.
    """
    draw = np.random.default_rng(seed)
    for number, (version, lost, untold, missed) in enumerate(draw.random((keys, 4)).tolist()):
        treated = version < share
        if treated and lost > kept:
            continue
        yield Answer(
            version="8" if treated else "7",
            key=f"{seed}-{number}",
            at=at + timedelta(milliseconds=10 * number),
            decision=missed > (costly if treated else 0.3),
            label=None if treated and untold > told else 1.0,
        )


def start(use_case, outside, *, request_id: str = "run 1", ago: timedelta = timedelta()) -> str:
    """Start it, so long ago."""
    said = experiment.start_experiment(use_case, "8", outside, actor="ada", request_id=request_id)
    if ago:
        outside.warehouse.execute("update experiments set started_at = started_at - %s", (ago,))
        outside.warehouse.execute(
            "update experiment_looks set looked_at = looked_at - %s, routed_at = routed_at - %s", (ago, ago)
        )
    return said


def build_dataset(outside, version: str, end: datetime) -> None:
    """A dataset that tells of the outcomes up to its end."""
    outside.warehouse.execute(
        'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
        " values ('flights', %s, 'r', %s, %s, 1, 0, '{}')",
        (version, end - timedelta(days=7), end),
    )


def looks(outside) -> list[dict]:
    return outside.warehouse.query("select * from experiment_looks order by look")


def ledger(outside) -> list[str]:
    found = outside.warehouse.query("select action, reason, actor from ledger order by entry")
    return [f"{row['action']} by {row['actor']}" for row in found]
