"""A store that is followed step by step, and answers from it: what the ledger of served features compares."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from adapters.connect import Outside
from expectations import suites
from infra.replay.flights_source import IDENTITIES
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from serving.prediction_log import PredictionLog
from serving.shipper import Shipper
from tasks.build_features import build, online_features
from tasks.build_features.followed_rows import FollowedRow, encode_rows
from tasks.ingest.check import to_canonical
from tasks.monitor.feature_ledger.ledger import ServedPartition, compare_served_features
from tasks.stream.session import StreamSession
from tasks.stream.source_step import LogPlace, SourceStep
from tasks.stream.state import begin_following
from tests.clean_data import put_clean, week
from tests.tasks.build_features.test_build import put, small
from tests.tasks.stream.answering import VERSION, Server
from tests.tasks.stream.live import rows_between

START = week(2).start
HOUR = timedelta(hours=1)
HORIZON = timedelta(seconds=60)
_ANSWERED = """
insert into answers_in_time (use_case, entity_key, event_time, prediction_time, model_version, score, decision,
    degraded, reasons, request_id, position, known_until, answered_at, in_time)
values ('flights', %s, %s, %s, %s, %s, %s, %s, %s, %s, 0, %s, %s, true)"""


def followed_by_clock(use_case: UseCase) -> UseCase:
    """The use case with a source that lives by our clock."""
    settings = use_case.source.model_dump() | {
        "follow": "cdc",
        "horizon_seconds": HORIZON.total_seconds(),
        "watermark": None,
    }
    return use_case.model_copy(update={"source": type(use_case.source).model_validate(settings)})


def encode(use_case: UseCase, table: str, rows: pa.Table) -> list[FollowedRow]:
    return encode_rows(use_case, table, to_canonical(rows, suites("flights")[table]), IDENTITIES[table])


@dataclass
class Stand:
    """Two weeks in the store, and a third that comes hour by hour. `now` is until when all is known."""

    use_case: UseCase
    outside: Outside
    folder: Path
    now: datetime = START
    lacking: FollowedRow | None = None  # a movement of the second week that comes to it late
    answered: dict[tuple[str, datetime], str] = field(default_factory=dict)  # event -> under what it was asked
    _requests: int = 0

    def __post_init__(self) -> None:
        put(self.outside, self.use_case, 0)
        put_clean(self.outside, self.use_case, week(1), **{**small(week(1)), **self.movements_without(1, self.lacking)})
        self.refresh()
        (self.folder / "bundle").mkdir()
        self.server = Server(self.use_case, self.outside.settings, self.folder / "bundle")
        self.outside.__dict__["registry"] = SimpleNamespace(download_bundle=lambda *_: self.folder / "bundle")
        self.follow()

    def movements_without(self, number: int, *rows: FollowedRow | None) -> dict[str, pa.Table]:
        """A week's movements but for some."""
        movements = small(week(number))["movements"]
        out = {row.identity for row in rows if row is not None}
        kept = [row.identity not in out for row in encode(self.use_case, "movements", movements)]
        return {"movements": movements.filter(pa.array(kept, pa.bool_()))}

    def refresh(self) -> Snapshot:
        built = build.build_snapshot(self.use_case, self.outside)
        assert built is not None
        online_features.refresh_store(self.use_case, built, self.outside)
        return built

    def follow(self) -> None:
        fence, state = begin_following(self.use_case, self.outside, IDENTITIES)
        self.session = StreamSession(self.use_case, self.outside, fence, IDENTITIES, state)
        self.session.__enter__()
        self.session.take(SourceStep(known_until=self.now, place=LogPlace(position=0, number=-1)))

    def close(self) -> None:
        self.session.__exit__(None, None, None)

    def rows(self, since: datetime, until: datetime) -> dict[tuple[str, str], FollowedRow]:
        """What became known in an interval, as the source has it."""
        return {
            (name, row.identity): row
            for name, table in rows_between(since, until).items()
            for row in encode(self.use_case, name, table)
        }

    def tell(
        self,
        until: datetime,
        *,
        without: Iterable[FollowedRow] = (),
        beside: Iterable[FollowedRow] = (),
        gone: Iterable[FollowedRow] = (),
    ) -> None:
        """One step of the stream: what became known until then, but for some rows, and others beside."""
        rows = self.rows(self.now, until)
        for row in without:
            rows.pop((row.table, row.identity), None)
        rows |= {(row.table, row.identity): row for row in beside}
        place = LogPlace(position=int((until - START).total_seconds()), number=0)
        leaving = frozenset((row.table, row.identity) for row in gone)
        self.session.take(SourceStep(rows=rows, gone=leaving, known_until=until, place=place))
        self.now = until

    def answer(self, until: datetime, what: str = "", server: Server | None = None) -> int:
        """Answer the known events that are due until a moment, and log what the server logs; how many."""
        server = server or self.server
        query = "select * from known_events where prediction_time < %s order by prediction_time, entity_key"
        due = self.outside.warehouse.query(query, (until,))
        for event in due:
            self._requests += 1
            reply = server.reply(json.dumps(event["request"]).encode(), {"X-Request-Id": f"due-{self._requests}"})
            assert reply.status == 200, reply.body
            self._keep(event, json.loads(reply.body), f"due-{self._requests}", until)
            self.answered[event["entity_key"], event["event_time"].astimezone(UTC)] = what
        self.outside.warehouse.execute("delete from known_events where prediction_time < %s", (until,))
        self._ship(server)
        return len(due)

    def _keep(self, event: Mapping[str, Any], answer: Mapping[str, Any], request_id: str, until: datetime) -> None:
        key = (event["entity_key"], event["event_time"], event["prediction_time"])
        told = (VERSION, answer["probability"], answer["decision"], answer["degraded"], answer["reasons"], request_id)
        self.outside.warehouse.execute(_ANSWERED, (*key, *told, answer["known_until"], until))

    def _ship(self, server: Server) -> None:
        log = PredictionLog(self.folder / "spool", use_case="flights", rotate_seconds=3600)
        for answers in server.logged:
            log.write(answers)
        server.logged.clear()
        log.close()
        Shipper(self.folder / "spool", self.outside.settings.warehouse_dsn).ship()

    def silent_server(self) -> Server:
        """The same model, whose store is not there."""
        (self.folder / "silent").mkdir()
        nowhere = replace(self.outside.settings, warehouse_dsn="postgresql://nobody@127.0.0.1:9/none")
        return Server(self.use_case, nowhere, self.folder / "silent")

    def build(self, **changed: pa.Table) -> Snapshot:
        """The third week is ingested, and built."""
        put_clean(self.outside, self.use_case, week(2), **{**small(week(2)), **changed})
        built = build.build_snapshot(self.use_case, self.outside)
        assert built is not None
        return built

    def compare(self) -> list[ServedPartition]:
        return compare_served_features(self.use_case, self.outside)

    def list_differences(self) -> list[dict[str, Any]]:
        query = "select * from served_differences order by event_time, entity_key, feature"
        return self.outside.warehouse.query(query)

    def list_alerts(self) -> list[dict[str, Any]]:
        return self.outside.warehouse.query("select * from alerts where resolved_at is null order by alert_id")
