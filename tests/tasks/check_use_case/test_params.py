"""Keys that contradict each other are named, with what is there and what to set; the shipped block contradicts none."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest

from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tasks.check_use_case.params_check import check_params

TODAY = date(2014, 1, 1)
FLIGHTS = use_cases(REPOSITORY / "params.yaml")["flights"]
BLIND = {"source.follow": None}
LIMITED = {"monitor.limits": {"auc": {"min": 0.83}}}

# What is set -> the key that is named, what it says of the values found, and what to set.
MISTAKES: list[tuple[Mapping[str, Any], str, str, str]] = [
    (
        {"time.label_delay_hours": 2900, "train.holdout_days": 28},
        "source.first_partition",
        "time.label_delay_hours 2900",
        "or fewer of these days",
    ),
    ({"time.lead_minutes": 172_800}, "source.first_partition", "time.lead_minutes 172800", "or fewer of these days"),
    (
        {"source.first_partition": date(2014, 6, 2), "source.last_partition": None},
        "source.first_partition",
        "2014-06-02 lies in the future",
        "2014-01-01",
    ),
    (
        {"source.first_partition": date(2013, 12, 2), "source.last_partition": None},
        "source.first_partition",
        "30 days lie between it and 2014-01-01, and a training takes 31.25",
        "a day at least 46 days before",
    ),
    ({"source.cron": "0 0 * * *"}, "source.cron", "comes after 1 days, and a partition has 7", "'0 0 * * 1'"),
    (
        {"source.cron": "0 0 * * 4"},
        "source.cron",
        "3 days after the end of each partition",
        "first_partition on a Thursday",
    ),
    ({"source.partition_days": 1}, "source.cron", "comes after 7 days, and a partition has 1", "'0 0 * * *'"),
    ({"source.horizon_seconds": 700_000.0}, "source.horizon_seconds", "700000", "less than 604800"),
    ({"train.trials_at_once": 16}, "train.trials_at_once", "16 of 9", "at most 9"),
    ({"train.batch_rows": 32_768}, "train.batch_rows", "32768", "at most 20000"),
    ({"gate.min_slice_rows": 6000}, "gate.min_slice_rows", "6000", "less than 5000"),
    (LIMITED, "monitor.limits.auc", "min 0.83", "min less than 0.82"),
    (
        {"gate.leak_alarm": {"metric": "log_loss", "below": 0.5}, "monitor.limits": {"log_loss": {"max": 0.4}}},
        "monitor.limits.log_loss",
        "max 0.4",
        "max more than 0.5",
    ),
    ({"monitor.max_age_days": 7}, "monitor.max_age_days", "7: a champion is that old", "more than 7, such as 28"),
    ({"monitor.performance_days": 3}, "monitor.performance_days", "3: a partition has 7 days", "at least 7"),
    (
        {"source.partition_days": 1, "source.cron": "0 0 * * *", "monitor.performance_days": 3},
        "monitor.performance_days",
        "3: by so few days",
        "at least 4",
    ),
    ({"monitor.breaker_days": 7}, "monitor.breaker_days", "7: 2 refusals", "more than 7"),
    (BLIND | {"endpoint.max_feature_age_hours": 24.0}, "endpoint.max_feature_age_hours", "24", "at least 192"),
]


def change(use_case: UseCase, changes: Mapping[str, Any]) -> UseCase:
    """The use case with other values, of which each is valid by itself."""
    document = use_case.model_dump()
    for path, value in changes.items():
        *blocks, key = path.split(".")
        place = document
        for block in blocks:
            place = place[block]
        place[key] = value
    if document["source"]["follow"] is None:
        document["endpoint"]["answers"] = None
    return UseCase.model_validate(document)


def test_the_shipped_block_contradicts_itself_nowhere() -> None:
    assert list(check_params(FLIGHTS, TODAY)) == []
    assert list(check_params(change(FLIGHTS, BLIND), TODAY)) == []


@pytest.mark.parametrize(("changes", "key", "found", "set_to"), MISTAKES, ids=[key for _, key, *_ in MISTAKES])
def test_a_contradiction_is_named_with_its_line_what_is_there_and_what_to_set(
    changes: Mapping[str, Any], key: str, found: str, set_to: str
) -> None:
    findings = {finding.key: finding for finding in check_params(change(FLIGHTS, changes), TODAY)}
    assert key in findings, findings
    told = findings[key].describe("flights", REPOSITORY / "params.yaml")
    assert told.startswith("params.yaml:")
    assert f"  flights.{key}: " in told
    assert found in findings[key].found
    assert set_to in findings[key].set_to
    line = int(told.split()[0].partition(":")[2])
    written = (REPOSITORY / "params.yaml").read_text().splitlines()[line - 1]
    assert any(name in written for name in key.split(".")[-2:])
