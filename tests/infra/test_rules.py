"""Each alert fires where it should, stays silent where it should, and leads to a page."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.settings import REPOSITORY
from tests.dashboards import RULES
from tests.infra.compose_rules import Compose, complaints
from tests.pages import read_blocks
from tests.prometheus_stand import program

FOLDER = REPOSITORY / "infra" / "prometheus"
MINUTES = 120  # how long the series below last, at one sample a minute

UC = 'use_case="flights"'
FEED = f'{UC}, table="weather"'
LIMIT = f"windsock_drifted_features_limit{{{UC}}}"


def drift(feature: str, measure: str = "psi") -> tuple[str, str]:
    labels = f'{{{UC}, model_version="2", feature="{feature}", measure="{measure}"}}'
    return f"windsock_drift{labels}", f"windsock_drift_threshold{labels}"


def psi(*values: float, measure: str = "psi") -> dict[str, Any]:
    """Features, each with a threshold of 0.5, of which two together are drift."""
    said = {}
    for number, value in enumerate(values):
        measured, threshold = drift(f"f{number}", measure)
        said |= {measured: value, threshold: 0.5}
    return {**said, LIMIT: 2}


def metric(name: str, first: float, now: float) -> dict[str, Any]:
    labels = f'{{{UC}, model_version="2", metric="{name}"}}'
    return {f"windsock_first_performance{labels}": first, f"windsock_performance{labels}": now}


def look(**values: Any) -> dict[str, Any]:
    return {f'windsock_online_{name}{{{UC}, model_version="2"}}': value for name, value in values.items()}


def gateway(good: Any, bad: Any, *, side: str = "frontend", proxy: str = "api") -> dict[str, Any]:
    """Counts of answers as clients see them, or as the server behind gives them after every attempt."""
    name, of = f"haproxy_{side}_http_responses_total", f'job="gateway", proxy="{proxy}"'
    said = {"2xx": good, "5xx": bad}
    series = {code: f"0+{count}x{MINUTES}" if isinstance(count, int) else count for code, count in said.items()}
    return {f'{name}{{{of}, code="{code}"}}': values for code, values in series.items()}


SPARED = {"side": "server", "proxy": "again"}  # failed, and answered by the static answer


def champion(present: Any) -> dict[str, Any]:
    return {f"windsock_champion_present{{{UC}}}": present}


def retrains(number: int, *, limit: int) -> dict[str, Any]:
    return {f"windsock_retrains_30_days{{{UC}}}": number, f"windsock_retrains_30_days_limit{{{UC}}}": limit}


def feed(**values: Any) -> dict[str, Any]:
    said = {f"windsock_feed_{name}{{{FEED}}}": value for name, value in values.items() if name != "partition_seconds"}
    every = values.get("partition_seconds")
    return said if every is None else {**said, f"windsock_partition_seconds{{{UC}}}": every}


def followed(**values: Any) -> dict[str, Any]:
    return {f"windsock_{name}{{{UC}}}": value for name, value in values.items()}


OURS = {"use_case": "flights"}
VERSION = {**OURS, "model_version": "2"}
TABLE = {**OURS, "table": "weather"}

# alert -> what is measured where it fires, with the labels it then has
FIRING: dict[str, list[tuple[dict[str, Any], dict[str, str]]]] = {
    "SlowAnswers": [(look(p99_seconds=0.21, looked_timestamp_seconds=f"0+60x{MINUTES}"), VERSION)],
    "FailingAnswers": [
        (gateway(980, 20), {"job": "gateway"}),
        ({**gateway(1000, 0), **gateway(980, 20, **SPARED)}, {"job": "gateway"}),
    ],
    "AnswersUnwatched": [(look(looked_timestamp_seconds=0), VERSION)],
    "NoChampion": [(champion(0), OURS)],
    "Drift": [(psi(0.6, 0.6, 0.1), OURS), (psi(0.6, measure="score_psi"), OURS)],
    "LostAccuracy": [
        (metric("auc", 0.74, 0.70), {**VERSION, "metric": "auc"}),
        (metric("mae", 4.0, 4.3), {**VERSION, "metric": "mae"}),
    ],
    "RetrainStorm": [(retrains(4, limit=3), OURS)],
    "StaleFeed": [
        (feed(validated_timestamp_seconds=0, partition_seconds=1200), TABLE),
        (feed(behind_seconds=86400), TABLE),
    ],
    "BlockedPartition": [(feed(blocked_partitions=1), TABLE)],
    "StreamSilent": [(followed(stream_silent_seconds=301), OURS)],
    "StreamBehind": [(followed(stream_known_until_timestamp_seconds=0, stream_horizon_seconds=60), OURS)],
    "SlotKeepsLog": [(followed(stream_slot_retained_bytes=600_000_000), OURS)],
    "EventsUnanswered": [(followed(due_events_seconds=7201, answer_budget_seconds=7200), OURS)],
    "AnswersTooLate": [(followed(newest_answers=20, newest_answers_in_time=17), OURS)],
    "AnswersUndelivered": [
        (followed(undeliverable_answers=1, undelivered_seconds=0), OURS),
        (followed(undeliverable_answers=0, undelivered_seconds=601), OURS),
    ],
    "TargetDown": [
        ({'up{job="gateway"}': 0}, {"job": "gateway"}),
        ({'up{job="airflow"}': "1x60 0x60"}, {"job": "airflow"}),
    ],
}
# alert -> what is measured where it must not fire
QUIET: dict[str, list[dict[str, Any]]] = {
    "SlowAnswers": [
        look(p99_seconds=0.19, looked_timestamp_seconds=f"0+60x{MINUTES}"),
        look(p99_seconds="0.1x116 0.3x4", looked_timestamp_seconds=f"0+60x{MINUTES}"),
        look(p99_seconds=0.21, looked_timestamp_seconds="0+60x60 3600x60"),  # nobody knows how slow they are now
    ],
    "FailingAnswers": [
        {**gateway(995, 5), **gateway(995, 5, **SPARED)},
        gateway(10, "0x116 1x4"),  # one of few
        gateway(0, 20, proxy="metrics"),
    ],
    "AnswersUnwatched": [look(looked_timestamp_seconds=f"-580+60x{MINUTES}")],
    "NoChampion": [champion(1), champion("1x115 0x10")],
    "Drift": [psi(0.6, 0.4, 0.1), psi(0.4, measure="score_psi"), psi(0.6, 0.6, measure="missing_share")],
    "LostAccuracy": [
        metric("auc", 0.74, 0.71),
        metric("auc", 0.70, 0.74),
        metric("mae", 4.0, 4.1),
        metric("log_loss", 0.4, 0.6),
    ],
    "RetrainStorm": [retrains(3, limit=3)],
    "StaleFeed": [
        feed(validated_timestamp_seconds=0, partition_seconds=3500),  # late, but not for an hour yet
        feed(validated_timestamp_seconds=0),  # its source has ended
        feed(behind_seconds=0),
        feed(behind_seconds="0x100 86400x40"),  # the others were quicker by some minutes
    ],
    "BlockedPartition": [feed(blocked_partitions=0)],
    "StreamSilent": [followed(stream_silent_seconds=299), followed(stream_silent_seconds="0x119 400")],
    "StreamBehind": [
        followed(stream_known_until_timestamp_seconds=f"-350+60x{MINUTES}", stream_horizon_seconds=60),
        followed(stream_known_until_timestamp_seconds=0),  # it has a clock of its own
    ],
    "SlotKeepsLog": [followed(stream_slot_retained_bytes=500_000_000)],
    "EventsUnanswered": [
        followed(due_events_seconds=7199, answer_budget_seconds=7200),
        followed(due_events_seconds=0, answer_budget_seconds=7200),
    ],
    "AnswersTooLate": [
        followed(newest_answers=20, newest_answers_in_time=18),
        followed(newest_answers=19, newest_answers_in_time=0),  # too few to say
    ],
    "AnswersUndelivered": [
        followed(undeliverable_answers=0, undelivered_seconds=0),
        followed(undeliverable_answers=0, undelivered_seconds=599),
    ],
    "TargetDown": [
        {'up{job="gateway"}': 1},
        {'up{job="gateway"}': "1x119 0"},
        {'up{job="airflow"}': 0},  # without the profile `monitoring`
    ],
}
FIRES = [(name, *case) for name, cases in FIRING.items() for case in cases]
SILENT = [(name, series) for name, cases in QUIET.items() for series in cases]


def promtool(folder: Path, alert: str, series: dict[str, Any], labels: list[dict[str, str]]) -> str:
    """Nothing, or what promtool has to say where other alerts of this name fire than those with these labels."""
    constant = {name: value if isinstance(value, str) else f"{value}x{MINUTES}" for name, value in series.items()}
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in constant.items()],
        "alert_rule_test": [
            {"eval_time": f"{MINUTES}m", "alertname": alert, "exp_alerts": [{"exp_labels": said} for said in labels]}
        ],
    }
    rules = [{key: value for key, value in rule.items() if key != "annotations"} for rule in RULES]
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    test = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [case]}
    (folder / "case.yaml").write_text(yaml.safe_dump(test))
    command = [program("promtool"), "test", "rules", str(folder / "case.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("alert", "series", "labels"), FIRES)
def test_it_fires(alert: str, series: dict[str, Any], labels: dict[str, str], tmp_path: Path) -> None:
    [severity] = [rule["labels"]["severity"] for rule in RULES if rule["alert"] == alert]
    assert promtool(tmp_path, alert, series, [{**labels, "severity": severity}]) == ""


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("alert", "series"), SILENT)
def test_it_stays_silent(alert: str, series: dict[str, Any], tmp_path: Path) -> None:
    assert promtool(tmp_path, alert, series, []) == ""


def test_every_alert_has_both_cases_a_severity_and_a_page_that_names_it() -> None:
    assert {rule["alert"] for rule in RULES} == FIRING.keys() == QUIET.keys()
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in RULES}
    now = {"FailingAnswers", "NoChampion", "RetrainStorm", "StreamSilent", "TargetDown"}  # rather than in the morning
    assert severities == {name: "critical" if name in now else "warning" for name in FIRING}
    for rule in RULES:
        assert rule["alert"] in (REPOSITORY / rule["annotations"]["runbook"]).read_text(), rule["alert"]


def problems(configuration: Path) -> str:
    """Nothing, or why Prometheus would not start with it."""
    command = [program("promtool"), "check", "config", str(configuration)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.mark.usefixtures("processes")
def test_the_configuration_is_one_that_prometheus_takes_with_these_rules() -> None:
    assert yaml.safe_load((FOLDER / "prometheus.yaml").read_text())["rule_files"] == ["rules.yaml"]
    assert problems(FOLDER / "prometheus.yaml") == ""


@pytest.mark.usefixtures("processes")
def test_an_alertmanager_as_the_page_says_is_taken_and_misspelt_it_is_not(compose: Compose, tmp_path: Path) -> None:
    alerting, beside = read_blocks("docs/monitoring.md", "yaml")
    ours, both = (FOLDER / "prometheus.yaml").read_text(), tmp_path / "prometheus.yaml"
    (tmp_path / "rules.yaml").write_text((FOLDER / "rules.yaml").read_text())
    both.write_text(ours + alerting)
    assert problems(both) == ""
    both.write_text(ours + alerting.replace("static_configs", "static_config"))
    assert "static_config not found" in problems(both)
    added = yaml.safe_load(beside)["services"]
    assert complaints({**compose, "services": {**compose["services"], **added}}) == []
    assert all(f'["{name}:9093"]' in alerting for name in added)
