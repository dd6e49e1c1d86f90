"""Online answers join outcomes and batch scores: measured once, and again where something changed."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tasks.monitor import online_quality
from tasks.score import load_batch_predictor
from tests.tasks.rollouts import alerts
from tests.tasks.server_room import Room

END = datetime(2013, 2, 11, tzinfo=UTC)  # a Monday after the last of the room's events


@pytest.fixture
def answered(first) -> Room:
    """Every event of the room was asked once, and version 1 scored it in batch, too."""
    first.traffic(40)
    snapshot(first)
    score = load_batch_predictor(first.use_case, "1", first.outside).predict(first.table)
    for row, value in zip(first.table.to_pylist(), score, strict=True):
        first.outside.warehouse.execute(
            "insert into predictions (use_case, entity_key, event_time, model_version, prediction_time, score,"
            " snapshot_version) values ('flights', %s, %s, '1', %s, %s, 's')",
            (row["entity_key"], row["event_time"], row["prediction_time"], float(value)),
        )
    return first


def snapshot(room: Room) -> None:
    room.outside.warehouse.execute(
        'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
        " values ('flights', 's', 'r', %s, %s, 6, 40, '{}')",
        (END - timedelta(days=56), END),
    )


def label(room: Room, rows: slice) -> None:
    for row in room.table.to_pylist()[rows]:
        room.outside.warehouse.execute(
            "insert into outcomes (use_case, entity_key, event_time, label, label_time)"
            " values ('flights', %s, %s, %s, %s)",
            (row["entity_key"], row["event_time"], row["label"], row["label_time"]),
        )


def latest(room: Room) -> list[dict]:
    return room.outside.warehouse.query(
        "select distinct on (partition_start, model_version) * from online_quality"
        " order by partition_start, model_version, measured_as_of desc"
    )


def test_each_partition_is_measured_once_and_agrees_with_the_batch(answered):
    label(answered, slice(0, 20))
    found = online_quality.measure_online_quality(answered.use_case, answered.outside)
    assert online_quality.measure_online_quality(answered.use_case, answered.outside) == []
    rows = latest(answered)
    assert len(found) == len(rows) >= 5
    assert sum(row["answers"] for row in rows) == 40
    assert sum(row["labelled"] for row in rows) == 20
    assert sum(row["compared"] for row in rows) == 40
    assert max(row["max_difference"] for row in rows) <= 1e-5
    assert all("log_loss" in row["metrics"] for row in rows if row["labelled"])
    assert alerts(answered) == []


def test_labels_that_come_later_restate_their_partitions_only(answered):
    label(answered, slice(0, 30))
    online_quality.measure_online_quality(answered.use_case, answered.outside)
    label(answered, slice(30, 40))
    later = online_quality.measure_online_quality(answered.use_case, answered.outside)
    assert 1 <= len(later) <= 3
    assert sum(row["labelled"] for row in latest(answered)) == 40


def test_answers_off_from_the_batch_on_fresh_features_are_told_until_they_agree(answered):
    change = "update online_answers set score = score + %s where entity_key = %s"
    key = answered.table["entity_key"][39].as_py()
    answered.outside.warehouse.execute(change, (0.01, key))
    online_quality.measure_online_quality(answered.use_case, answered.outside)
    assert alerts(answered) == [("warning", "flights.online.skew")]
    assert sum(row["beyond"] for row in latest(answered)) == 1
    answered.outside.warehouse.execute(change, (-0.01, key))
    online_quality.measure_online_quality(answered.use_case, answered.outside)
    assert alerts(answered) == []


def assert_shown_and_not_judged(answered: Room) -> None:
    online_quality.measure_online_quality(answered.use_case, answered.outside)
    rows = latest(answered)
    assert sum(row["compared"] for row in rows) == 0
    assert max(row["max_stale_difference"] for row in rows) == pytest.approx(0.1, abs=1e-4)
    assert alerts(answered) == []


def test_answers_on_older_features_are_shown_and_not_judged(answered):
    answered.outside.warehouse.execute(
        "update online_answers set score = score + 0.1, feature_age_seconds = 3600 where slot = 'stable'"
    )
    assert_shown_and_not_judged(answered)


def test_answers_given_before_a_partition_was_mended_are_shown_and_not_judged(answered):
    answered.outside.warehouse.execute("update online_answers set score = score + 0.1 where slot = 'stable'")
    answered.outside.warehouse.execute("update predictions set snapshot_version = 'mended'")
    answered.outside.warehouse.execute(
        'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
        " select use_case, 'mended', git_revision, start, \"end\", partitions, rows,"
        " (select jsonb_object_agg(to_char(day, 'YYYY-MM-DD'), jsonb_build_object('inputs', 'others'))"
        "  from generate_series(start, \"end\", interval '1 day') as day) from snapshots"
    )
    assert_shown_and_not_judged(answered)


def test_metrics_are_json(answered):
    label(answered, slice(0, 40))
    for row in online_quality.measure_online_quality(answered.use_case, answered.outside):
        assert set(json.loads(row.metrics)) >= {"log_loss", "brier"}


def test_a_label_that_came_early_counts_once_its_like_had_their_time_and_batch_is_compared_at_once(answered):
    label(answered, slice(0, 40))
    answered.outside.warehouse.execute(
        "update online_answers set prediction_time = %s where entity_key = %s",
        (END - timedelta(hours=25), answered.table["entity_key"][39].as_py()),
    )
    online_quality.measure_online_quality(answered.use_case, answered.outside)
    assert [sum(row[name] for row in latest(answered)) for name in ("labelled", "compared")] == [39, 40]
    answered.outside.warehouse.execute('update snapshots set "end" = "end" + %s', (timedelta(days=7),))
    [restated] = online_quality.measure_online_quality(answered.use_case, answered.outside)
    assert restated.measured_as_of == END + timedelta(days=7)
    assert sum(row["labelled"] for row in latest(answered)) == 40
