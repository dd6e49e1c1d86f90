"""From the spool to PostgreSQL: once each, whoever is killed; what is lost is counted."""

import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pyarrow as pa
import pytest

from pipeline.settings import REPOSITORY
from serving import prediction_log
from serving.locks import take_lock
from serving.prediction_log import PredictionLog, has_ended
from serving.shipper import Shipper, ship_until_ended
from tests.infra.test_stack import query
from tests.waiting import until

NOW = datetime(2013, 7, 4, 12, tzinfo=UTC)


def batch(request_id: str, events: int = 1, **changes: object) -> list[dict[str, object]]:
    row = {
        "use_case": "flights", "request_id": request_id, "model_version": "3", "slot": "stable", "client": "ops",
        "entity_key": "UA15", "event_time": NOW.isoformat(), "prediction_time": NOW.isoformat(), "score": 0.25,
        "decision": True, "degraded": True, "reasons": ["no weather"], "feature_as_of": None,
        "feature_snapshot": None, "feature_changes": 7, "feature_age_seconds": None,
        "server_ms": 1.5, "request": {"carrier": "UA"}, "answered_at": NOW.isoformat(),
        "features": {"wind": 1.5, "pace": float("nan"), "most": float("inf"), "carrier": "UA"}, **changes,
    }  # fmt: skip
    return [{**row, "position": n} for n in range(events)]


@pytest.fixture
def spool(tmp_path):
    return tmp_path / "spool"


@pytest.fixture
def dsn(settings):
    return settings.warehouse_dsn


def filled(spool: Path, *batches: list[dict[str, object]]) -> None:
    log = PredictionLog(spool, use_case="flights", rotate_seconds=3600)
    for answers in batches:
        log.write(answers)
    log.close()


def balance(dsn: str) -> dict[str, int]:
    names = ("answered", "shipped", "dropped", "lost", "repeated")
    [row] = query(dsn, f"select {', '.join(f'coalesce(sum({name}), 0)' for name in names)} from online_losses")
    return {name: int(value) for name, value in zip(names, row, strict=True) if name != "repeated" or value}


def shipped(dsn: str) -> int:
    return int(query(dsn, "select count(*) from online_answers")[0][0])


def test_a_row_arrives_as_it_was_answered(spool, dsn):
    filled(spool, batch("a"))
    assert Shipper(spool, dsn).ship() == 1
    [row] = query(
        dsn,
        "select request_id, position, score, decision, reasons, feature_as_of, request ->> 'carrier', features,"
        " event_time, answered_at from online_answers",
    )
    assert row[:7] == ("a", 0, 0.25, True, ["no weather"], None, "UA")
    assert row[7] == {"wind": 1.5, "pace": None, "most": None, "carrier": "UA"}
    assert (row[8], row[9]) == (NOW, NOW)
    assert list(spool.iterdir()) == []
    assert balance(dsn) == {"answered": 1, "shipped": 1, "dropped": 0, "lost": 0}


def test_what_a_server_of_before_wrote_as_arrow_arrives_as_it_was_answered(spool, dsn):
    """With a column less than today, and a float that is no number."""
    filled(spool, batch("new"))
    [segment] = spool.glob("*.done")
    moments = ("event_time", "prediction_time", "answered_at")
    [row] = batch("old", position=0)
    row |= dict.fromkeys(moments, NOW) | {"request": '{"carrier": "UA"}', "position": 0}
    features = row.pop("features")
    del row["feature_changes"]
    batches = pa.Table.from_pylist([row | {f"feature.{name}": value for name, value in features.items()}]).to_batches()
    records = [batches[0].schema.serialize().to_pybytes(), batches[0].serialize().to_pybytes()]
    segment.write_bytes(b"".join(struct.pack("<II", len(each), zlib.crc32(each)) + each for each in records))
    assert Shipper(spool, dsn).ship() == 1
    columns = "request_id, features, request, event_time, reasons, feature_changes"
    assert query(dsn, f"select {columns} from online_answers") == [
        (
            "old",
            {"wind": 1.5, "pace": None, "most": None, "carrier": "UA"},
            {"carrier": "UA"},
            NOW,
            ["no weather"],
            None,
        )
    ]
    assert list(spool.iterdir()) == []


def test_a_request_that_was_sent_twice_is_one_row(spool, dsn):
    filled(spool, batch("a", 2), batch("a", 2), batch("b"))
    assert Shipper(spool, dsn).ship() == 3
    assert shipped(dsn) == 3
    assert balance(dsn) == {"answered": 5, "shipped": 3, "dropped": 0, "lost": 0, "repeated": 2}


def test_a_client_that_uses_one_request_id_for_different_events_has_them_all_logged(spool, dsn):
    others = ({"entity_key": "UA99"}, {"event_time": (NOW + timedelta(days=1)).isoformat()}, {"model_version": "4"})
    filled(spool, batch("a", 2), *(batch("a", 2, **other) for other in others))
    assert Shipper(spool, dsn).ship() == shipped(dsn) == 8
    assert balance(dsn) == {"answered": 8, "shipped": 8, "dropped": 0, "lost": 0}


def test_a_segment_whose_removal_was_missed_is_not_counted_twice(spool, dsn):
    log = PredictionLog(spool, use_case="flights", rotate_seconds=0.05)
    log.write(batch("a", 3))
    until(lambda: bool(list(spool.glob("*.done"))))
    [segment] = spool.glob("*.done")
    content = segment.read_bytes()
    shipper = Shipper(spool, dsn)
    assert shipper.ship() == 3
    segment.write_bytes(content)
    assert shipper.ship() == 0
    log.close()
    shipper.ship()
    assert balance(dsn) == {"answered": 3, "shipped": 3, "dropped": 0, "lost": 0}


def test_the_open_segment_of_a_living_writer_is_left_alone(spool, dsn):
    log = PredictionLog(spool, use_case="flights", rotate_seconds=3600)
    log.write(batch("a"))
    assert Shipper(spool, dsn).ship() == 0
    log.close()
    assert Shipper(spool, dsn).ship() == 1


def test_what_was_torn_is_counted_as_lost_and_what_was_dropped_as_dropped(spool, dsn):
    log = PredictionLog(spool, use_case="flights", max_bytes=30_000, rotate_seconds=3600)
    kept = sum(log.write(batch(str(n), 5)) for n in range(50))
    log.close()
    [segment] = spool.glob("*.done")
    segment.write_bytes(segment.read_bytes()[:-3])
    Shipper(spool, dsn).ship()
    assert 1 < kept < 50
    assert balance(dsn) == {"answered": 250, "shipped": 5 * (kept - 1), "dropped": 5 * (50 - kept), "lost": 5}


def test_a_segment_the_table_refuses_is_put_aside_and_the_others_pass(spool, dsn):
    filled(spool, batch("bad", answered_at="no moment"))
    filled(spool, batch("good"))
    Shipper(spool, dsn).ship()
    assert query(dsn, "select request_id from online_answers") == [("good",)]
    assert balance(dsn)["lost"] == 1
    assert [path.suffix for path in spool.iterdir()] == [".refused"]


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 16, b"\0" * 16 + b"{}", b"\0" * 16 + b'{"use_case": 1'])
def test_a_session_that_cannot_be_read_is_put_aside_its_answers_arrive_and_the_others_pass(spool, dsn, content):
    filled(spool, batch("orphan", 2))
    [session] = spool.glob("*.session")
    session.write_bytes(content)
    filled(spool, batch("good"))
    shipper = Shipper(spool, dsn)
    assert shipper.ship() == 3
    assert shipper.ship() == 0
    assert [path.name for path in spool.iterdir()] == [session.with_suffix(".refused").name]
    assert balance(dsn) == {"answered": 3, "shipped": 3, "dropped": 0, "lost": 0}


def test_a_session_of_which_nothing_can_be_read_stops_nobody(spool, dsn):
    spool.mkdir()
    (spool / "20000101T000000000000-1-aaaa.session").write_bytes(b"")
    (spool / "20000101T000000000000-1-aaaa-00000001.done").write_bytes(b"torn")
    filled(spool, batch("good"))
    assert Shipper(spool, dsn).ship() == 1
    assert {path.suffix for path in spool.iterdir()} == {".refused"}


# What a segment began with before answers had bounds (migration 0021).
BEFORE_BOUNDS = (
    b'["use_case","request_id","position","model_version","slot","client","entity_id","entity_key","event_time",'
    b'"prediction_time","score","decision","degraded","reasons","feature_as_of","feature_snapshot","feature_changes",'
    b'"feature_age_seconds","server_ms","request","answered_at","features"]'
)


def test_what_a_server_without_intervals_wrote_arrives_and_bounds_of_today_do_too(spool, dsn, monkeypatch):
    monkeypatch.setattr(prediction_log, "_HEADING", BEFORE_BOUNDS)
    filled(spool, batch("before"))
    monkeypatch.undo()
    filled(spool, batch("today", lower=0.1, upper=1 / 3))
    assert Shipper(spool, dsn).ship() == 2
    assert query(dsn, "select request_id, score, lower, upper from online_answers order by 1") == [
        ("before", 0.25, None, None), ("today", 0.25, 0.1, 1 / 3)
    ]  # fmt: skip


def test_sabotage_bounds_that_are_not_around_their_answer_are_put_aside(spool, dsn):
    filled(spool, batch("wrong", lower=0.3, upper=0.4))
    filled(spool, batch("half", lower=0.1, upper=None))
    filled(spool, batch("good", lower=0.25, upper=0.25))
    assert Shipper(spool, dsn).ship() == 1
    assert query(dsn, "select request_id from online_answers") == [("good",)]


def other_record(segment: Path) -> None:
    content = b"whole, and not ours"
    segment.write_bytes(struct.pack("<II", len(content), zlib.crc32(content)) + content)


@pytest.mark.parametrize("case", ["earlier columns", "other type", "another record"])
def test_a_segment_that_is_not_of_this_server_is_lost_and_the_others_pass(spool, dsn, case, caplog, monkeypatch):
    if case == "earlier columns":
        monkeypatch.setattr(prediction_log, "_HEADING", b'["use_case"]')
    filled(spool, batch("old", 2, score="high" if case == "other type" else 0.5))
    monkeypatch.undo()
    if case == "another record":
        other_record(next(spool.glob("*.done")))
    filled(spool, batch("good"))
    assert Shipper(spool, dsn).ship() == 1
    assert query(dsn, "select request_id from online_answers") == [("good",)]
    assert balance(dsn) == {"answered": 3, "shipped": 1, "dropped": 0, "lost": 2}
    assert [path.suffix for path in spool.iterdir()] == [".refused"]
    assert "is put aside, its answers are lost" in caplog.text


def test_a_session_the_disk_does_not_hand_over_holds_up_no_other(spool, dsn):
    spool.mkdir()
    (spool / "0.session").mkdir()
    filled(spool, batch("good"))
    assert Shipper(spool, dsn).ship() == 1


def test_whoever_only_looks_at_the_lock_does_not_make_a_shipper_leave(tmp_path):
    lock = tmp_path / "shipper.lock"
    looker = lock.open("w")
    fcntl.flock(looker, fcntl.LOCK_EX)
    assert not has_ended(lock)
    threading.Timer(0.15, looker.close).start()
    assert take_lock(lock)


def test_a_second_shipper_of_a_spool_leaves_and_the_lock_says_whether_there_is_one(spool, dsn):
    spool.mkdir()
    lock = spool / "shipper.lock"
    lock.touch()
    assert has_ended(lock)
    environment = {**os.environ, "WINDSOCK_SPOOL": str(spool), "WINDSOCK_ONLINE_DSN": dsn}
    command = [sys.executable, "-m", "serving.shipper"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        assert "shipping" in first.stderr.readline()
        assert not has_ended(lock)
        assert subprocess.run(command, cwd=REPOSITORY, env=environment, check=False).returncode == 1
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
    assert has_ended(lock)


def test_it_waits_for_a_database_that_is_away_and_loses_nothing(spool, dsn):
    filled(spool, batch("a"))
    shipper, ended, told = Shipper(spool, dsn.replace("warehouse_", "nowhere_")), threading.Event(), []

    def warn(text: str) -> None:
        told.append(text)
        shipper._dsn = dsn if len(told) == 2 else shipper._dsn

    running = threading.Thread(target=ship_until_ended, args=(shipper, ended), kwargs={"warn": warn})
    running.start()
    until(lambda: shipped(dsn) == 1)
    ended.set()
    running.join()
    assert len(told) == 2


def test_a_server_that_cuts_the_connection_is_connected_to_again(spool, dsn):
    shipper = Shipper(spool, dsn)
    filled(spool, batch("a"))
    shipper.ship()
    query(dsn, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
               " and pid <> pg_backend_pid()")  # fmt: skip
    filled(spool, batch("b"))
    with pytest.raises(psycopg2.Error):
        shipper.ship()
    shipper.ship()
    assert shipped(dsn) == 2


WRITER = """
import sys
from pathlib import Path
from serving.prediction_log import PredictionLog
from tests.serving.test_shipper import batch
log = PredictionLog(Path(sys.argv[1]), use_case="flights", rotate_seconds=0.02)
number = 0
while True:
    log.write(batch(f"{sys.argv[2]}-{number}", 1 + number % 3))
    print(f"{sys.argv[2]}-{number}", flush=True)
    number += 1
"""


def test_kill_9_of_writers_and_shippers_at_any_moment_doubles_and_loses_nothing(spool, dsn, tmp_path):
    draw = random.Random(5)  # noqa: S311 (moments to kill at)
    environment = {**os.environ, "WINDSOCK_SPOOL": str(spool), "WINDSOCK_ONLINE_DSN": dsn}
    spool.mkdir()

    def start_shipper() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "serving.shipper"], cwd=REPOSITORY, env=environment, stderr=subprocess.DEVNULL
        )

    shipper, acknowledged = start_shipper(), []
    for generation in range(4):
        out = tmp_path / f"{generation}.txt"
        with out.open("wb") as told:
            writer = subprocess.Popen(
                [sys.executable, "-c", WRITER, str(spool), str(generation)], cwd=REPOSITORY, stdout=told
            )
        until(lambda: out.stat().st_size > 0)  # noqa: B023 (called at once)
        until_killed = time.monotonic() + draw.uniform(0.3, 1.5)
        while time.monotonic() < until_killed:
            time.sleep(draw.uniform(0.1, 0.5))
            shipper.send_signal(signal.SIGKILL)
            shipper.wait()
            shipper = start_shipper()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        acknowledged += out.read_text().rpartition("\n")[0].split("\n")
    until(lambda: not list(spool.glob("*.session")))
    shipper.send_signal(signal.SIGTERM)
    assert shipper.wait(20) == 0
    events = {request: 1 + int(request.split("-")[1]) % 3 for request in acknowledged}
    arrived = dict(query(dsn, "select request_id, count(*) from online_answers group by 1"))
    assert {request: arrived.get(request) for request in events} == events
    found = balance(dsn)
    assert found["shipped"] == sum(arrived.values())
    assert found["answered"] == found["shipped"] + found["dropped"] + found["lost"]
    assert found["lost"] <= 4 * 3  # at most the batch each writer had in its hands
    assert len(acknowledged) > 50
