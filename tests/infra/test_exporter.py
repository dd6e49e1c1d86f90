"""The exporter says what is in the warehouse, nothing it could not read, and reads no more than it may."""

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import requests
import yaml
from prometheus_client import start_http_server

from adapters.connect import Outside
from infra.local import postgres
from infra.local.stack import Stack
from infra.prometheus.exporter import make_registry
from pipeline.settings import REPOSITORY, Settings
from tests.shipped import read_shipped_params
from tests.tasks.stream.receiving import plant_answers

FLIGHTS = {"use_case": "flights"}
OF_VERSION = {**FLIGHTS, "model_version": "2"}
PARAMS = REPOSITORY / "params.yaml"

BATCH = """
insert into batches (use_case, table_name, partition_start, partition_end, raw_sha256, version, raw_uri, raw_rows,
    status, clean_uri, clean_sha256, clean_rows, quarantined_rows, validated_at)
values ('flights', %(table)s, %(start)s, %(start)s::timestamptz + interval '7 days', %(sha)s, %(version)s, 'raw', 1000,
    %(status)s, 'clean', 'c', 990, 10, '2026-01-01 00:00+00')
"""
PLANTED = """
insert into champions (use_case, revision, version, as_of) values ('flights', 2, '2', '2013-03-04');
insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence) values
    ('flights', 'promote', '2', '2013-03-04', 'gate', 'better', '{}');
insert into drift values
    ('flights', '2013-03-04', '2', 'temp', 'psi', 9.0, 0.2, 'breach'),
    ('flights', '2013-03-11', '2', 'temp', 'psi', 0.3, 0.2, 'breach'),
    ('flights', '2013-03-11', '2', 'wind', 'psi', null, 0.2, 'unknown');
insert into performance (use_case, model_version, window_start, window_end, measured_as_of, predicted, labelled,
    coverage, metrics, status) values
    ('flights', '2', '2013-02-22', '2013-03-03', '2013-03-04', 100, 90, 0.9, '{"auc": 0.74}', 'ok'),
    ('flights', '2', '2013-02-22', '2013-03-03', '2013-03-11', 100, 96, 0.9, '{"auc": 0.75}', 'ok'),
    ('flights', '2', '2013-03-01', '2013-03-10', '2013-03-11', 100, 90, 0.9, '{"auc": 0.70}', 'ok'),
    ('flights', '2', '2013-03-01', '2013-03-10', '2013-03-18', 100, 96, 0.96, '{"auc": 0.71}', 'ok'),
    ('flights', '2', '2013-03-08', '2013-03-17', '2013-03-18', 100, 20, 0.2, '{"auc": 0.1}', 'unknown'),
    ('flights', '1', '2013-03-01', '2013-03-10', '2013-03-18', 100, 96, 0.96, '{"auc": 0.6}', 'ok');
insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence) values
    ('d1', 'flights', '2013-01-14', '2', 'retrain', '{old}', '{}'),
    ('d2', 'flights', '2013-03-04', '2', 'retrain', '{old}', '{}'),
    ('d3', 'flights', '2013-03-11', '2', 'ignore', '{fine}', '{}');
insert into retrains (decision_id, use_case, state) values ('d1', 'flights', 'done'), ('d2', 'flights', 'done');
"""
SERVED = """
insert into served_performance (use_case, model_version, window_start, window_end, measured_as_of, labelled, answered,
    late, coverage, versions, metrics, restated, restated_metrics, status, is_judged) values
    ('flights', '2', '2013-02-22', '2013-03-03', '2013-03-04', 100, 96, 0, 0.96, '{"2": 96}', '{"auc": 0.70}', 96,
        '{"auc": 0.71}', 'ok', true),
    ('flights', '2', '2013-03-01', '2013-03-10', '2013-03-11', 100, 95, 3, 0.95, '{"2": 95}', '{"auc": 0.66}', 95,
        '{"auc": 0.72}', 'degraded', true);
"""
ANSWER = """
insert into online_answers (use_case, request_id, position, model_version, slot, client, entity_key, event_time,
    prediction_time, score, decision, degraded, reasons, server_ms, request, features, answered_at)
values ('flights', %(id)s, 0, '2', %(slot)s, 'c', %(id)s, %(at)s, %(at)s, %(score)s, %(decision)s, false, '{}', 1,
    '{"secret": 1}', %(features)s, now())
"""


def batch(outside: Outside, table: str, start: str, *, status: str = "clean", version: int = 1) -> None:
    said = {"table": table, "start": start, "status": status, "version": version, "sha": f"{version}"}
    outside.warehouse.execute(BATCH, said)


def answer(
    outside: Outside, identity: str, at: str, *, score: float, decision: bool | None, label: float, slot: str = "stable"
) -> None:
    features = json.dumps({"origin": "EWR", "temp": 1.5})
    said = {"id": identity, "at": at, "score": score, "decision": decision, "features": features, "slot": slot}
    outside.warehouse.execute(ANSWER, said)
    outside.warehouse.execute("insert into outcomes values ('flights', %s, %s, %s, now())", (identity, at, label))


@pytest.fixture
def observer(outside: Outside, settings: Settings, stack: Stack) -> str:
    """The address of a test's warehouse for the exporter's role."""
    home, database = stack.home(), settings.warehouse_dsn.rpartition("/")[2]
    outside.warehouse.execute(f"grant connect on database {database} to observer")
    return postgres.postgres_dsn(home.ports["postgres"], database, "observer", home.secrets["observer"])


def test_it_says_the_newest_of_everything(outside: Outside, observer: str) -> None:
    outside.warehouse.execute(PLANTED)
    numbers = make_registry(observer, PARAMS)

    def value(name: str, **labels: str) -> float | None:
        return numbers.get_sample_value(f"windsock_{name}", labels)

    assert value("champion_present", **FLIGHTS) == 1
    assert value("drift", **OF_VERSION, feature="temp", measure="psi") == 0.3
    assert value("drift_threshold", **OF_VERSION, feature="temp", measure="psi") == 0.2
    of_auc = {"metric": "auc", "basis": "restated"}
    assert value("performance", **OF_VERSION, **of_auc) == 0.71
    assert value("performance", **FLIGHTS, model_version="1", **of_auc) == 0.6
    assert value("first_performance", **OF_VERSION, **of_auc) == 0.75
    assert value("label_coverage", **OF_VERSION) == 0.2  # too few labels to say more of that window
    assert value("decisions_total", **FLIGHTS, decision="retrain") == 2
    assert value("decisions_total", **FLIGHTS, decision="block") == 0
    assert value("retrains_30_days", **FLIGHTS) == 1
    assert value("retrains_30_days_limit", **FLIGHTS) == 3
    assert value("ledger_entries_total", **FLIGHTS, action="promote") == 1
    assert value("error_cost", **FLIGHTS, outcome="missed") == 5


def test_what_was_served_is_shown_where_it_was_judged_and_restated_beside_it(outside: Outside, observer: str) -> None:
    outside.warehouse.execute(PLANTED)
    outside.warehouse.execute(SERVED)
    numbers = make_registry(observer, PARAMS)

    def value(name: str, **labels: str) -> float | None:
        return numbers.get_sample_value(f"windsock_{name}", labels)

    assert value("performance", **OF_VERSION, metric="auc", basis="served") == 0.66
    assert value("performance", **OF_VERSION, metric="auc", basis="restated") is None
    assert value("performance", **FLIGHTS, model_version="1", metric="auc", basis="restated") == 0.6
    assert value("first_performance", **OF_VERSION, metric="auc", basis="served") == 0.7
    assert value("restated_performance", **OF_VERSION, metric="auc") == 0.72
    assert [value(name, **OF_VERSION) for name in ("served_coverage", "served_judged", "late_answers")] == [0.95, 1, 3]


EXPECTED = """
insert into expected_performance (use_case, model_version, window_start, window_end, measured_as_of, predicted, matured,
    expected, labelled, realised) values
    ('flights', '1', '2013-03-04', '2013-03-11', '2013-03-11', 100, 90,
        '{"auc": {"value": 0.7, "spread": 0.01, "low": 0.68, "high": 0.72, "trust": "unproven"}}', 0, '{}'),
    ('flights', '2', '2013-03-11', '2013-03-18', '2013-03-18', 100, 90,
        '{"auc": {"value": 0.74, "spread": 0.01, "low": 0.72, "high": 0.76, "trust": "trusted"},
          "brier": {"value": 0.2, "spread": 0.01, "low": 0.1, "high": 0.3, "trust": "withdrawn"}}', 0, '{}');
"""


def test_what_is_expected_of_the_newest_partition_is_shown_with_its_interval_and_whether_it_is_trusted(
    outside: Outside, observer: str
) -> None:
    outside.warehouse.execute(EXPECTED)
    numbers = make_registry(observer, PARAMS)

    def values(version: str, metric: str) -> list[float | None]:
        labels = {**FLIGHTS, "model_version": version, "metric": metric}
        names = ("", "_low", "_high", "_trusted")
        return [numbers.get_sample_value(f"windsock_expected_performance{name}", labels) for name in names]

    assert values("2", "auc") == [0.74, 0.72, 0.76, 1]
    assert values("2", "brier") == [0.2, 0.1, 0.3, 0]
    assert values("1", "auc") == [None] * 4


def test_where_too_little_was_served_batch_is_shown_and_how_little(outside: Outside, observer: str) -> None:
    outside.warehouse.execute(PLANTED)
    outside.warehouse.execute(SERVED)
    outside.warehouse.execute("update served_performance set is_judged = false, coverage = 0.2")
    numbers = make_registry(observer, PARAMS)
    batch = {**OF_VERSION, "metric": "auc", "basis": "restated"}
    assert numbers.get_sample_value("windsock_performance", batch) == 0.71
    assert numbers.get_sample_value("windsock_first_performance", batch) == 0.75
    assert numbers.get_sample_value("windsock_served_judged", OF_VERSION) == 0
    assert numbers.get_sample_value("windsock_served_coverage", OF_VERSION) == 0.2


def test_what_could_not_be_measured_is_no_sample_and_counted_as_unknown(outside: Outside, observer: str) -> None:
    outside.warehouse.execute(PLANTED)
    numbers = make_registry(observer, PARAMS)
    wind = {**OF_VERSION, "feature": "wind", "measure": "psi"}
    assert numbers.get_sample_value("windsock_drift", wind) is None
    assert numbers.get_sample_value("windsock_drift_threshold", wind) == 0.2
    assert numbers.get_sample_value("windsock_drift_unknown", FLIGHTS) == 1


def test_a_use_case_that_runs_and_has_no_champion_says_so_before_anything_else_is_there(
    observer: str, tmp_path: Path
) -> None:
    (running := tmp_path / "params.yaml").write_text(PARAMS.read_text().replace("  paused: true ", "  paused: false "))
    assert make_registry(observer, running).get_sample_value("windsock_champion_present", FLIGHTS) == 0


def test_one_that_waits_without_data_is_no_alert_and_one_that_has_some_is(outside: Outside, observer: str) -> None:
    """What is shipped and never replayed here costs nothing."""
    numbers = make_registry(observer, PARAMS)
    assert numbers.get_sample_value("windsock_champion_present", FLIGHTS) is None
    outside.warehouse.execute(
        "insert into batches (use_case, table_name, partition_start, partition_end, version, raw_sha256, raw_uri,"
        " raw_rows, status)"
        " values ('flights', 'flights', '2013-01-07', '2013-01-14', 1, 'a', 's3://lake/a', 1, 'landed')"
    )
    assert numbers.get_sample_value("windsock_champion_present", FLIGHTS) == 0


def test_a_feed_is_as_old_as_its_newest_clean_content(outside: Outside, observer: str) -> None:
    batch(outside, "flights", "2013-01-07")
    batch(outside, "flights", "2013-01-14")
    batch(outside, "weather", "2013-01-07", status="blocked")
    batch(outside, "weather", "2013-01-07", version=2)  # mended
    batch(outside, "weather", "2013-01-14", status="blocked")
    numbers = make_registry(observer, PARAMS)
    weather = {**FLIGHTS, "table": "weather"}
    assert numbers.get_sample_value("windsock_feed_behind_seconds", weather) == 7 * 86400
    assert numbers.get_sample_value("windsock_feed_blocked_partitions", weather) == 1
    assert numbers.get_sample_value("windsock_feed_behind_seconds", {**FLIGHTS, "table": "flights"}) == 0
    assert numbers.get_sample_value("windsock_feed_validated_timestamp_seconds", weather) == 1767225600
    assert numbers.get_sample_value("windsock_quarantined_share", weather) == 0.01
    assert numbers.get_sample_value("windsock_quarantined_share_limit", weather) == 0.05


def test_an_old_partition_that_is_mended_makes_no_feed_younger(outside: Outside, observer: str) -> None:
    batch(outside, "weather", "2013-01-07")
    batch(outside, "weather", "2013-01-14")
    outside.warehouse.execute(
        "update batches set validated_at = '2026-02-01 00:00+00' where partition_start < '2013-01-14'"
    )
    weather = {**FLIGHTS, "table": "weather"}
    value = make_registry(observer, PARAMS).get_sample_value("windsock_feed_validated_timestamp_seconds", weather)
    assert value == 1767225600


def test_what_answers_and_was_never_looked_at_is_as_old_as_its_deployment(outside: Outside, observer: str) -> None:
    outside.warehouse.execute(
        "insert into deployments (deployment_id, use_case, kind, version, revision, stage, outcome, actor, reason,"
        " as_of, finished_at) values ('d', 'flights', 'rollout', '1', 1, 'done', 'full', 'test', '', '2013-04-01+00',"
        " '2026-01-01 00:00+00')"
    )
    numbers, labels = make_registry(observer, PARAMS), {**FLIGHTS, "model_version": ""}
    assert numbers.get_sample_value("windsock_online_looked_timestamp_seconds", labels) == 1767225600
    assert numbers.get_sample_value("windsock_online_p99_seconds", labels) is None


def test_more_partitions_are_expected_until_the_source_has_ended(outside: Outside, observer: str) -> None:
    numbers = make_registry(observer, PARAMS)
    batch(outside, "flights", "2013-12-16")
    assert numbers.get_sample_value("windsock_partition_seconds", FLIGHTS) == 7 * 86400
    batch(outside, "flights", "2013-12-23")
    assert numbers.get_sample_value("windsock_partition_seconds", FLIGHTS) is None


def test_decisions_are_counted_by_what_came_of_them_in_all_and_by_slice(outside: Outside, observer: str) -> None:
    """Once their labels had their time: an outcome that came early is not counted without its like."""
    outside.warehouse.execute(PLANTED)
    outside.warehouse.execute(
        'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
        " values ('flights', 's', 'r', '2013-01-07', '2013-03-04 00:00+00', 8, 0, '{}')"
    )
    answer(outside, "early", "2013-03-02 22:30+00", score=0.1, decision=False, label=0)
    answer(outside, "old", "2013-01-01 00:00+00", score=0.9, decision=True, label=1)
    answer(outside, "hit", "2013-03-01 00:00+00", score=0.9, decision=True, label=1)
    answer(outside, "missed", "2013-03-02 00:00+00", score=0.1, decision=False, label=1)
    answer(outside, "shadow", "2013-03-02 00:00+00", score=0.9, decision=True, label=1, slot="shadow")
    answer(outside, "undecided", "2013-03-02 00:00+00", score=0.5, decision=None, label=1)
    numbers = make_registry(observer, PARAMS)
    found = {
        o: numbers.get_sample_value("windsock_decided_events", {**OF_VERSION, "outcome": o})
        for o in ("hit", "missed", "needless", "quiet")
    }
    assert found == {"hit": 1, "missed": 1, "needless": None, "quiet": None}
    newark = {**FLIGHTS, "slice": "origin", "value": "EWR"}
    assert numbers.get_sample_value("windsock_slice_events", newark) == 3
    error = (0.1**2 + 0.9**2 + 0.5**2) / 3
    assert numbers.get_sample_value("windsock_slice_squared_error", newark) == pytest.approx(error)


@pytest.mark.parametrize(
    "statement",
    [
        "select row_data from quarantine",
        "select request from online_answers",
        "select client from online_answers",
        "select * from predictions",
        "insert into alerts (tier, fingerprint, title, body) values ('info', 'f', 't', 'b')",
        "update champions set version = '9'",
        "create table mine (a int)",
    ],
)
def test_its_role_may_neither_read_rows_nor_write(observer: str, statement: str) -> None:
    connection = psycopg2.connect(observer)
    with connection.cursor() as at, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        at.execute(statement)
    connection.close()


@pytest.fixture
def scraped(observer: str) -> Iterator[str]:
    server, thread = start_http_server(0, "127.0.0.1", registry=make_registry(observer, PARAMS))
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_warehouse_that_cannot_be_read_is_a_failed_scrape_and_no_old_number(outside: Outside, scraped: str) -> None:
    assert "windsock_champion_present" in requests.get(scraped, timeout=10).text
    outside.warehouse.execute("revoke select on champions from observer")
    assert requests.get(scraped, timeout=10).status_code == 500
    outside.warehouse.execute("grant select on champions to observer")
    assert requests.get(scraped, timeout=10).status_code == 200


FOLLOWED = """
insert into stream_state (use_case, identities, known_until, answers_since, moved_at)
values ('flights', '{}', '2013-05-01 12:00+00', '2013-05-01 00:00+00', now() - interval '40 seconds');
insert into known_events (use_case, entity_key, event_time, prediction_time, request, problem) values
    ('flights', 'late', '2013-05-01 13:00+00', '2013-05-01 11:00+00', '{}', null),
    ('flights', 'due', '2013-05-01 13:30+00', '2013-05-01 11:30+00', '{}', null),
    ('flights', 'wrong', '2013-05-01 12:30+00', '2013-05-01 10:30+00', '{}', 'no carrier'),
    ('flights', 'to come', '2013-05-01 15:00+00', '2013-05-01 13:00+00', '{}', null)
"""
GIVEN = """
insert into answers_in_time (use_case, entity_key, event_time, prediction_time, model_version, score, degraded, reasons,
    request_id, position, answered_at, made_at, in_time)
values ('flights', %(key)s, %(at)s, %(at)s, '1', 0.5, false, '{}', 'r', 0, now(), now() - %(ago)s * interval '1 second',
    %(in_time)s)
"""


def give(outside: Outside, key: str, at: str, *, ago: int = 0, in_time: bool = True, status: str | None = None) -> None:
    outside.warehouse.execute(GIVEN, {"key": key, "at": at, "ago": ago, "in_time": in_time})
    if status is not None:
        outside.warehouse.execute(
            "insert into answer_deliveries (use_case, entity_key, event_time, status) values ('flights', %s, %s, %s)",
            (key, at, status),
        )


def test_the_stream_and_what_it_answers_are_told_of(outside: Outside, observer: str) -> None:
    numbers = make_registry(observer, PARAMS)

    def value(name: str) -> float | None:
        return numbers.get_sample_value(f"windsock_{name}", FLIGHTS)

    assert value("stream_silent_seconds") is None  # nothing was followed yet
    assert value("due_events_seconds") is None
    outside.warehouse.execute(FOLLOWED)
    assert value("stream_silent_seconds") == pytest.approx(40, abs=30)
    assert value("stream_known_until_timestamp_seconds") == 1367409600
    assert (value("due_events"), value("refused_events"), value("due_events_seconds")) == (2, 1, 3600)
    assert (value("newest_answers"), value("undelivered_answers"), value("undelivered_seconds")) == (0, 0, 0)
    give(outside, "old", "2013-04-29 00:00+00", in_time=False)
    give(outside, "a", "2013-05-01 01:00+00", in_time=False, status="delivered")
    give(outside, "b", "2013-05-01 02:00+00", ago=900, status="waiting")
    give(outside, "c", "2013-05-01 03:00+00", ago=100, status="waiting")
    give(outside, "d", "2013-05-01 04:00+00", ago=5000, status="undeliverable")
    assert (value("newest_answers"), value("newest_answers_in_time")) == (5, 3)
    assert (value("undelivered_answers"), value("undeliverable_answers")) == (2, 1)
    assert value("undelivered_seconds") == pytest.approx(900, abs=30)
    assert value("answer_budget_seconds") == 7200
    plant_answers(outside.warehouse, 0, 1000)
    assert (value("newest_answers"), value("newest_answers_in_time")) == (1000, 999)  # none of April


def test_the_slot_of_a_source_on_the_same_server_is_told_of_and_of_no_other(
    outside: Outside, observer: str, settings: Settings, stack: Stack
) -> None:
    outside.warehouse.execute(FOLLOWED)
    numbers, database = make_registry(observer, PARAMS), settings.source_dsn.rpartition("/")[2]
    admin = psycopg2.connect(stack.home().admin_dsn, dbname=database)
    admin.autocommit = True
    with admin.cursor() as at:
        assert numbers.get_sample_value("windsock_stream_slot_behind_bytes", FLIGHTS) is None
        at.execute("select pg_create_logical_replication_slot('windsock_flights', 'pgoutput')")
        try:
            at.execute("create table kept as select repeat('x', 2000) from generate_series(1, 2000)")
            for name in ("retained", "behind"):
                value = numbers.get_sample_value(f"windsock_stream_slot_{name}_bytes", FLIGHTS)
                assert value is not None
                assert value > 100_000
            assert numbers.get_sample_value("windsock_stream_slot_active", FLIGHTS) == 0
        finally:
            at.execute("select pg_drop_replication_slot('windsock_flights')")
    admin.close()


def test_only_a_source_that_lives_by_the_clock_has_a_horizon_to_be_behind(observer: str, tmp_path: Path) -> None:
    def horizon(watermark: dict[str, str] | None) -> float | None:
        params = read_shipped_params()
        params["flights"]["source"] |= {"watermark": watermark, "horizon_seconds": 90.0}
        path = tmp_path / f"{watermark is None}.yaml"
        path.write_text(yaml.safe_dump(params))
        return make_registry(observer, path).get_sample_value("windsock_stream_horizon_seconds", FLIGHTS)

    assert horizon(None) == 90
    assert horizon({"table": "clock", "column": "told_until"}) is None
