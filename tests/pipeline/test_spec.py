"""params.yaml is read as written or not at all: each wrong place is named by its path, with what was expected there."""

import copy
from datetime import date
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

import features
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, parse_use_cases, use_cases

SHIPPED = (REPOSITORY / "params.yaml").read_text()
WEBHOOK = {"url_env": "WEBHOOK_URL", "secret_env": "WEBHOOK_SECRET", "max_answers": 9, "timeout_seconds": 9}
EXPERIMENT = {
    "mode": "fixed",
    "share": 0.2,
    "alpha": 0.05,
    "min_effect": 0.0,
    "min_events": 2000,
    "max_events": 50000,
    "max_harm": 0.2,
    "max_error_share": 0.02,
    "max_degraded_share": 0.1,
}
REGRESSION = {
    "target.kind": "regression",
    "train.metric": "mae",
    "gate.metric": "mae",
    "gate.leak_alarm": {"metric": "mae", "below": 0.5},
    "monitor.limits": {"mae": {"max": 20.0}},
    "monitor.recalibration": None,
    "endpoint.costs": None,
}
INTERVAL = {"coverage": 0.9, "max_gap": 0.03}


def changed(changes: dict[str, Any]) -> str:
    """The shipped text with the values at some paths replaced, or removed where the value is `del`."""
    blocks = copy.deepcopy(yaml.safe_load(SHIPPED))
    for path, value in changes.items():
        *parents, last = path.split(".")
        block = blocks["flights"]
        for parent in parents:
            block = block[parent]
        if value is del_:
            del block[last]
        else:
            block[last] = value
    return yaml.safe_dump(blocks)


del_ = object()


def parse(changes: dict[str, Any]) -> UseCase:
    return parse_use_cases(changed(changes), origin="params.yaml")["flights"]


def test_the_shipped_file_parses_and_its_quoted_days_are_days():
    source = use_cases(REPOSITORY / "params.yaml")["flights"].source
    assert (source.first_partition, source.last_partition) == (date(2012, 12, 31), date(2013, 12, 23))


def test_the_shipped_file_names_only_columns_that_its_feature_definition_has():
    for name, use_case in use_cases(REPOSITORY / "params.yaml").items():
        definition = features.definition(name)
        columns = {*definition.numeric, *definition.categorical}
        assert {*use_case.gate.slices, *use_case.monitor.structural_features} <= columns


@pytest.mark.parametrize(
    "changes",
    [
        {"train.holdout_days": 14, "gate.min_days": 14},
        {"source.last_partition": None},
        {"source.last_partition": "2012-12-31"},
        {"source.first_partition": date(2012, 12, 31)},
        {"source.cron": "*/15 0-6,12 * * 1-5"},
        {"gate.leak_alarm": {"metric": "log_loss", "below": 0.05}},
        {"monitor.limits": {"auc": {"min": 0.6, "max": 0.9}}},
        {"source.tables.weather.exempt": ["2012-12-31", "2013-12-23"]},
        {"source.tables.weather.duplicates": "keep_latest", "source.follow": None, "endpoint.answers": None},
        REGRESSION,
        REGRESSION | {"target.interval": None},
        REGRESSION
        | {"target.interval": INTERVAL, "monitor.limits": {"mae": {"max": 9.0}, "interval_coverage": {"min": 0.8}}},
    ],
)
def test_what_is_allowed_parses(changes):
    assert parse(changes).name == "flights"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train.trails": 9}, "flights.train.trails: no such key"),
        (
            {"source.tables.weather.exempt": ["2013-01-08"]},
            "flights.source.tables.weather.exempt: expected days on which a partition starts (a multiple of 7 days",
        ),
        (
            {"source.tables.weather.exempt": ["2013-12-30"]},
            "flights.source.tables.weather.exempt: expected days on which a partition starts (a multiple of 7 days",
        ),
        (
            {"source.tables.weather.duplicates": "keep_latest"},
            "flights.source.tables.weather.duplicates: expected stop where source.follow is cdc: who follows takes",
        ),
        (
            {"time.history_days": 31},
            "flights.time.history_days: no such key any more: a feature definition",
        ),
        (
            {"source.tables.weather.event_time": "observed_at"},
            "flights.source.tables.weather.event_time: no such key any more: nothing read it",
        ),
        (
            {"target.kind": "multiclass"},
            "flights.target.kind: several classes are not built (docs/decisions/0035): expected binary, with label 1",
        ),
        ({"target.kind": "Multi-Class"}, "flights.target.kind: several classes are not built"),
        ({"target.kind": "ranking"}, "flights.target.kind: Input should be 'binary' or 'regression', got 'ranking'"),
        ({"train.trials": del_}, "flights.train.trials: missing"),
        ({"gate": del_}, "flights.gate: missing"),
        ({"engine": "polars"}, "flights.engine: Input should be 'duckdb' or 'spark', got 'polars'"),
        ({"train.trials": True}, "flights.train.trials: Input should be a valid integer, got True"),
        ({"train.trials": "9"}, "flights.train.trials: Input should be a valid integer, got '9'"),
        ({"train.trials": 9.0}, "flights.train.trials: Input should be a valid integer, got 9.0"),
        ({"gate.min_effect": "0.1"}, "flights.gate.min_effect: Input should be a valid number, got '0.1'"),
        ({"gate.min_effect": True}, "flights.gate.min_effect: Input should be a valid number, got True"),
        ({"gate.min_effect": float("nan")}, "flights.gate.min_effect: Input should be a finite number, got nan"),
        ({"gate.min_days": 1}, "flights.gate.min_days: Input should be greater than 1, got 1"),
        ({"gate.slices": "carrier"}, "flights.gate.slices: Input should be a valid array, got 'carrier'"),
        ({"name": "other"}, "flights.name: no such key; the block's own key is the name"),
        ({"train.metric": "mae"}, "flights.train.metric: expected a metric of a binary target (log_loss, "),
        ({"gate.metric": "rmse"}, "flights.gate.metric: expected a metric of a binary target (log_loss, "),
        (
            {"gate.leak_alarm": {"metric": "mae", "below": 1.0}},
            "flights.gate.leak_alarm.metric: expected a metric of a binary target (log_loss, ",
        ),
        (
            {"monitor.limits": {"rmse": {"max": 1.0}}},
            "flights.monitor.limits.rmse: expected a metric of a binary target (log_loss, ",
        ),
        (REGRESSION | {"train.metric": "auc"}, "flights.train.metric: expected a metric of a regression target (mae, "),
        (
            {"target.interval": INTERVAL},
            "flights.target.interval: expected null for a binary target: its answer is a probability",
        ),
        (
            REGRESSION | {"monitor.recalibration": {"half_life_days": 28, "spread": 0.15, "min_gain": 0.0002}},
            "flights.monitor.recalibration: expected null for a regression target, whose answers are no probabilities",
        ),
        (
            {"risk": "high"},
            "flights.monitor.recalibration: expected null where risk is high: it changes the champion without a person",
        ),
        ({"monitor.recalibration.spread": 0.0}, "flights.monitor.recalibration.spread: Input should be greater than 0"),
        (
            REGRESSION | {"target.interval": INTERVAL | {"coverage": 1.0}},
            "flights.target.interval.coverage: Input should be less than or equal to 0.99, got 1.0",
        ),
        (REGRESSION | {"target.interval": {"coverage": 0.9}}, "flights.target.interval.max_gap: missing"),
        (
            REGRESSION | {"monitor.limits": {"interval_width": {"max": 9.0}}},
            "flights.monitor.limits.interval_width: expected target.interval, without which no answer has one, got",
        ),
        (
            REGRESSION | {"target.interval": INTERVAL, "monitor.limits": {"interval_coverage": {"min": 80.0}}},
            "flights.monitor.limits.interval_coverage.min: expected more than 0 and less than 1, got 80.0",
        ),
        (
            REGRESSION | {"target.interval": INTERVAL, "monitor.limits": {"interval_coverage": {"min": 0.9}}},
            "flights.monitor.limits.interval_coverage: expected limits on either side of target.interval.coverage",
        ),
        ({"endpoint.costs": None}, "flights.endpoint.costs: expected missed and needless for a binary target"),
        ({"endpoint.rollout.canary_share": 0.7}, "flights.endpoint.rollout.canary_share: "),
        (
            {"endpoint": None, "experiment": EXPERIMENT, "source.follow": None},
            "flights.experiment: expected an endpoint with costs",
        ),
        ({"endpoint": None}, "flights.source.follow: expected null where there is no endpoint"),
        ({"source.follow": None}, "flights.endpoint.answers: expected null where source.follow is null"),
        (
            {"endpoint.answers": {"within_minutes": 60, "webhook": WEBHOOK | {"url_env": "https://a.example/secret"}}},
            "flights.endpoint.answers.webhook.url_env: ",
        ),
        (
            {"endpoint.answers": {"within_minutes": 60, "webhook": WEBHOOK | {"secret_env": "WEBHOOK_URL"}}},
            "flights.endpoint.answers.webhook.secret_env: expected another variable than url_env",
        ),
        (
            {"endpoint.answers": {"within_minutes": 121, "webhook": None}},
            "flights.endpoint.answers.within_minutes: expected at most time.lead_minutes (120)",
        ),
        (
            {"experiment": EXPERIMENT | {"max_events": 10}},
            "flights.experiment.max_events: expected more than min_events",
        ),
        ({"train.holdout_days": 6}, "flights.train.holdout_days: expected at least gate.min_days (7), or no candidate"),
        ({"gate.leak_alarm.above": 1.0}, "flights.gate.leak_alarm.above: expected more than 0.5 and less than 1 for"),
        ({"gate.leak_alarm.above": 0.5}, "flights.gate.leak_alarm.above: expected more than 0.5 and less than 1 for"),
        (
            {"gate.leak_alarm": {"metric": "auc", "below": 0.6}},
            "flights.gate.leak_alarm.above: expected more than 0.5 and less than 1 for auc, got None",
        ),
        (
            {"gate.leak_alarm": {"metric": "log_loss", "above": 0.6}},
            "flights.gate.leak_alarm.below: expected more than 0 for log_loss, got None",
        ),
        ({"gate.leak_alarm.below": 0.1}, "flights.gate.leak_alarm.above: expected exactly one of `above` and `below`"),
        ({"monitor.limits": {}}, "flights.monitor.limits: Dictionary should have at least 1 item"),
        ({"monitor.limits.auc": {}}, "flights.monitor.limits.auc.min: expected at least one of `min` and `max`"),
        (
            {"monitor.limits.auc": {"min": 0.8, "max": 0.7}},
            "flights.monitor.limits.auc.min: expected less than max (0.7), got 0.8",
        ),
        (
            {"monitor.limits.auc": {"min": 0.0}},
            "flights.monitor.limits.auc.min: expected more than 0 and less than 1, got 0.0",
        ),
        ({"monitor.persistence_breaches": 4}, "flights.monitor.persistence_breaches: expected at most persistence_of"),
        ({"source.last_partition": "2013-12-24"}, "flights.source.last_partition: expected a day that is a multiple"),
        ({"source.last_partition": "2012-12-24"}, "flights.source.last_partition: expected a day that is a multiple"),
        ({"source.first_partition": "Monday"}, "flights.source.first_partition: Input should be a valid date"),
        ({"source.cron": "0 0 * *"}, "flights.source.cron: expected five fields, minute, hour, day of month, month, "),
        ({"source.cron": "0 24 * * 1"}, "flights.source.cron: hour '24': expected *, numbers from 0 to 23, a range or"),
        ({"source.cron": "0 0 * * mon"}, "flights.source.cron: day of week 'mon': expected *, numbers from 0 to 7"),
        (
            {"source.tables.weather.min_rows": 521},
            "flights.source.tables.weather.min_rows: expected at most max_rows (520), got 521",
        ),
        ({"train.dropout": [0.4, 0.1]}, "flights.train.dropout: expected [low, high] with 0 <= low <= high, got"),
    ],
)
def test_a_wrong_place_is_named_by_its_path_with_what_was_expected_and_nothing_else(changes, line):
    with pytest.raises(ValueError, match="1 wrong place") as error:
        parse(changes)
    [said] = str(error.value).splitlines()[1:]
    assert said.startswith(line)
    assert len(said) < 200, "no whole block is shown"


def test_every_wrong_place_is_named_at_once():
    with pytest.raises(ValueError, match=r"params\.yaml has 3 wrong place") as error:
        parse({"train.metric": "mae", "gate.metric": "mae", "train.holdout_days": 1})
    assert len(str(error.value).splitlines()) == 4


def test_a_key_given_twice_is_refused_where_it_is():
    twice = SHIPPED.replace("  seed: 2013\n", "  seed: 2013\n  seed: 2014\n")
    with pytest.raises(ValueError, match=r"the key 'seed' is given twice(.|\n)*line 7"):
        parse_use_cases(twice, origin="params.yaml")


@pytest.mark.parametrize("text", ["", "flights", "- flights", "a: [", "? [1]\n: 2"])
def test_what_is_no_set_of_blocks_is_said(text):
    with pytest.raises(ValueError, match=r"params\.yaml"):
        parse_use_cases(text, origin="params.yaml")


def test_a_use_case_that_is_no_block_is_named():
    with pytest.raises(ValueError, match="other: expected a block of keys, got 3"):
        parse_use_cases(SHIPPED + "\nother: 3\n", origin="params.yaml")


def test_a_use_case_is_frozen():
    use_case = parse({})
    with pytest.raises(ValidationError, match="frozen"):
        use_case.gate.min_effect = 0.0
