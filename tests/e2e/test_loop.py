"""The whole loop through the real scheduler, its parts killed on the way, ends as an undisturbed one does."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml

from infra.local.home import inherited_environment
from infra.local.stack import Stack
from infra.local.state_file import quote_log_end
from pipeline.settings import REPOSITORY
from tests.conftest import leave_dag_files_alone
from tests.e2e.observed import observed, unhealthy_rules, without_data
from tests.pages import read_blocks
from tests.shipped import read_shipped_params

# The only limit of the loop, and generous: some machines are four times as slow as a quiet one.
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("processes"), pytest.mark.timeout(4000)]
TRAIN_UNTIL, WEEKS, BROKEN = "2013-02-25", 3, 2
NOTHING = "select 1 where false"

# What must be the same however the loop came to its end. Times of day, run ids and addresses may differ.
COMPARED = {
    "batches": "select table_name, partition_start, version, raw_sha256, status, clean_sha256, quarantined_rows "
    "from batches order by 1, 2, 3",
    "quarantine": "select table_name, partition_start, raw_sha256, row_number, reasons from quarantine "
    "order by 1, 2, 3, 4",
    "champion": "select revision, version, previous_version, as_of from champions",
    "ledger": "select action, model_version, champion_version, as_of, reason from ledger "
    "where action not like 'deploy%' order by entry",
    "decisions": "select decision_id, decision, reasons, model_version from decisions order by 1",
    "retrains": "select decision_id, state, outcome from retrains order by 1",
    "outcomes": "select count(*), sum(label), md5(string_agg(label_time::text, ',' order by event_time, entity_key)) "
    "from outcomes",
    "scorings": "select partition_start, model_version, inputs, rows from scorings order by 1, 2",
    "drift": "select as_of, feature, measure, value, threshold, status, basis from drift order by 1, 2, 3",
    "performance": "select model_version, window_start, measured_as_of, predicted, labelled, metrics::text, status "
    "from performance order by 1, 2, 3",
    "served performance": "select model_version, window_start, window_end, measured_as_of, labelled, answered, late, "
    "versions::text, metrics::text, restated, restated_metrics::text, is_judged from served_performance "
    "order by 1, 2, 3, 4",
    "alerts": "select fingerprint, tier, title, occurrences from alerts "
    "where fingerprint like '%.monitor.%' order by 1, alert_id",
    "predictions": "select model_version, count(*), md5(string_agg(score::text, ',' order by event_time, entity_key)) "
    "from predictions group by 1 order by 1",
    "latest features": "select version, rows from snapshots order by build_order desc limit 1",
}
# By which code each step of a run wrote what it came to.
RECORDED = ("batches", "decisions", "deployments", "ledger", "retrains", "scorings", "snapshots")
WROTE = " union ".join(f"select '{table}', coalesce(code_sha, 'nobody') from {table}" for table in RECORDED)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="windsock-e2e-"))
    made.chmod(0o755)  # PostgreSQL runs as nobody when the tests run as root
    yield made
    if not os.environ.get("WINDSOCK_KEEP"):
        shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    """The shipped use case with a small search and an early retrain, so that a few weeks show everything."""
    params = read_shipped_params()
    block = params["flights"]
    small = {"trials": 3, "rungs": [2, 5], "networks": ["mlp"], "hidden_units": [64], "layers": [1]}
    small |= {"validation_days": 7, "min_rows": 5000}
    block["train"] |= small
    block["monitor"] |= {"max_age_days": 7}
    block["endpoint"]["rollout"] |= {"shadow_requests": 50, "canary_share": 0.3, "canary_requests": 30}
    block["endpoint"]["rollout"] |= {"max_p99_ms": 5000}  # its parts are killed, on a machine that is all used
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    return {**inherited_environment(), "WINDSOCK_PARAMS": str(path), "PYTHONPATH": str(REPOSITORY)}


def facts(stack: Stack) -> dict[str, list[Any]]:
    connection = psycopg2.connect(stack.home().dsn("warehouse"))
    try:
        with connection, connection.cursor() as cursor:
            found = {}
            for name, query in {**COMPARED, "wrote": WROTE}.items():
                cursor.execute(query)
                found[name] = cursor.fetchall()
            return found
    finally:
        connection.close()


def count(stack: Stack, query: str) -> int:
    try:
        connection = psycopg2.connect(stack.home().dsn("warehouse"), connect_timeout=3)
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            return int(cursor.fetchall()[0][0])
    except (psycopg2.Error, ValueError, FileNotFoundError):
        return 0  # not there yet, or just killed


def kill(stack: Stack, part: str) -> None:
    os.kill(json.loads((stack.folder / "state.json").read_text())["parts"][part]["pid"], signal.SIGKILL)


def ends(stack: Stack) -> str:
    """The last lines of what the replay and the parts said, for a failure: the folder goes with the test."""
    logs = [stack.folder.parent / "replay.log", *sorted((stack.folder / "logs").glob("*.log"))]
    return "\n".join(quote_log_end(log, lines=30) for log in logs)


def disturb(stack: Stack, replay: "subprocess.Popen[bytes]") -> list[str]:
    """Kill a part each time the loop has come a step further; returns what was killed, when."""
    steps: list[tuple[str, str, Callable[[], int]]] = [
        (
            "scheduler",
            "in the backfill",
            lambda: count(stack, "select count(*) >= 4 from batches where status = 'clean'"),
        ),
        ("postgres", "while the first champion is trained", lambda: count(stack, "select count(*) > 0 from snapshots")),
        ("s3", "in the first live week", lambda: count(stack, "select count(*) from champions")),
        (
            "scheduler",
            "while it retrains",
            lambda: count(stack, "select count(*) from retrains where state = 'running'"),
        ),
    ]
    killed = []
    for part, moment, reached in steps:
        while not reached():
            assert replay.poll() is None, f"the replay ended before {part} was killed {moment}"
            time.sleep(0.5)
        kill(stack, part)
        killed.append(f"{part} {moment}")
    return killed


@pytest.fixture(scope="module")
def disturbed(folder: Path, environment: dict[str, str]) -> Iterator[dict[str, Any]]:
    stack = Stack(folder / "disturbed")
    leave_dag_files_alone(stack.folder)
    command = [
        sys.executable,
        "-m",
        "infra.replay",
        "--home",
        str(stack.folder),
        "--report",
        str(folder / "report.html"),
    ]
    command += ["--train-until", TRAIN_UNTIL, "--weeks", str(WEEKS), "--incident-week", str(BROKEN)]
    command += ["--mended-after-hours", "168"]  # the whole week, as in the straight run: nobody pages there
    command += ["--seconds-per-hour", "0.5"]
    with (folder / "replay.log").open("wb") as log:
        replay = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            killed = disturb(stack, replay)
            code = replay.wait()
            again = subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=False)
            restarts = {row.part: row.restarts for row in stack.status()}
            yield {
                "code": code,
                "log": (folder / "replay.log").read_text(),
                "again": again,
                "killed": killed,
                "restarts": restarts,
                "facts": facts(stack),
                "stack": stack,
            }
        finally:
            print(ends(stack))  # shown where the limit was reached
            replay.kill()
            stack.stop()


def copy_served(source: Stack, target: Stack) -> None:
    """What was served is a fact of its own: whoever decides again is told of it, and does not ask again."""
    connections = [psycopg2.connect(stack.home().dsn("warehouse")) for stack in (source, target)]
    for table in ("answers_in_time", "online_answers"):
        rows = io.StringIO()
        for connection, direction in zip(connections, ("to stdout", "from stdin"), strict=True):
            with connection, connection.cursor() as cursor:
                cursor.copy_expert(f"copy {table} {direction}", rows)
            rows.seek(0)
    for connection in connections:
        connection.close()


@pytest.fixture(scope="module")
def undisturbed(folder: Path, environment: dict[str, str], disturbed: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
    stack = Stack(folder / "undisturbed")
    try:
        stack.start(("postgres", "s3", "mlflow"), owner=os.getpid())
        copy_served(disturbed["stack"], stack)
        command = [sys.executable, "-m", "tests.e2e.straight", TRAIN_UNTIL, str(WEEKS), str(BROKEN)]
        done = subprocess.run(
            command,
            env={**environment, **stack.environment()},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield facts(stack)
    finally:
        stack.stop()


def test_the_loop_ends_well_though_its_parts_were_killed(disturbed: dict[str, Any]) -> None:
    assert disturbed["code"] == 0, disturbed["log"][-3000:]
    assert len(disturbed["killed"]) == 4
    assert disturbed["restarts"]["scheduler"] >= 1


def test_killed_or_not_it_ends_with_the_same_champion_rows_and_decisions(
    disturbed: dict[str, Any], undisturbed: dict[str, list[Any]]
) -> None:
    for name in COMPARED:
        assert disturbed["facts"][name] == undisturbed[name], name


def test_every_step_says_which_code_it_was(disturbed: dict[str, Any]) -> None:
    told = (disturbed["stack"].folder / "env").read_text().splitlines()
    [sha] = [line.partition("=")[2] for line in told if line.startswith("WINDSOCK_CODE_SHA=")]
    assert sorted(disturbed["facts"]["wrote"]) == [(table, sha) for table in RECORDED]


def test_it_retrained_and_judged_and_the_broken_feed_was_blocked_without_a_retrain(disturbed: dict[str, Any]) -> None:
    decisions = {row[0]: row[1] for row in disturbed["facts"]["decisions"]}
    assert decisions["flights-20130304T0000"] == "retrain"
    assert decisions["flights-20130311T0000"] == "block"
    retrained = {row[0]: row[1] for row in disturbed["facts"]["retrains"]}
    assert retrained["flights-20130304T0000"] == "done"
    assert "flights-20130311T0000" not in retrained
    actions = [row[0] for row in disturbed["facts"]["ledger"] if row[0] != "recalibrate"]
    assert actions[0] == "promote"
    assert len(actions) == 1 + len(retrained)


def test_the_champion_answers_online_as_in_batch_though_parts_were_killed(disturbed: dict[str, Any]) -> None:
    [line] = [line for line in disturbed["log"].splitlines() if line.startswith("parity")]
    assert line.startswith(
        "parity     1,000 real events, 55 features: training = batch = online, at most 0.0e+00 apart"
    )
    [asked] = [line for line in disturbed["log"].splitlines() if line.startswith("online")]
    assert ", 0 failed, " in asked
    champion = disturbed["facts"]["champion"][0][1]
    query = f"select count(*) from deployments where outcome = 'full' and version = '{champion}'"
    assert count(disturbed["stack"], query) == 1
    assert count(disturbed["stack"], "select count(*) from online_answers where slot = 'stable'") > 1000


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed here")
def test_the_lines_of_docs_online_work_as_printed(disturbed: dict[str, Any], folder: Path) -> None:
    settings, *lines = read_blocks("docs/online.md", "sh")
    assert len(lines) == 4
    checkout = folder / "checkout"
    checkout.mkdir()
    (checkout / ".windsock").symlink_to(disturbed["stack"].folder)
    printed = []
    for line in lines:
        done = subprocess.run(
            ["bash", "-euc", settings + line], cwd=checkout, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        printed.append(json.loads(done.stdout))
    one, several, explained, schema = printed
    assert 0 < one["probability"] < 1
    assert [0 < answer["probability"] < 1 for answer in several] == [True, True]
    difference = explained["probability"] - explained["baseline"]
    assert sum(explained["attributions"].values()) == pytest.approx(difference, abs=1e-3)
    assert schema["openapi"].startswith("3.1")


def test_every_panel_and_every_alert_has_data_and_one_that_has_none_is_named(
    disturbed: dict[str, Any], tmp_path: Path
) -> None:
    stack = disturbed["stack"]
    empty = [{"title": "empty", "targets": [{"refId": "A", **q}]} for q in ({"expr": "no_such"}, {"rawSql": NOTHING})]
    with observed(stack, tmp_path) as running:
        assert without_data(running, stack) == []
        assert unhealthy_rules(running) == []
        assert running.up() == dict.fromkeys(("prometheus", "warehouse", "gateway", "torchserve", "airflow"), True)
        named = without_data(running, stack, {"sabotage": {"panels": empty}}, patience_seconds=5)
    assert named == ["sabotage: empty A: no_such", f"sabotage: empty A: {NOTHING}"]


def test_every_event_was_answered_by_itself_once_though_parts_were_killed(disturbed: dict[str, Any]) -> None:
    """How many in time, says how fast the machine is, half a second being an hour here; so that is not asserted."""
    stack = disturbed["stack"]
    weeks = "prediction_time >= '2013-02-25' and prediction_time < '2013-03-18'"
    points = count(stack, f"select count(distinct (entity_key, event_time)) from predictions where {weeks}")
    answered = count(stack, f"select count(*) from answers_in_time where {weeks}")
    untrue = count(
        stack,
        "select count(*) from answers_in_time where in_time is distinct from"
        f" (answered_at < event_time and answered_at <= prediction_time + interval '120 minutes') and {weeks}",
    )
    assert points > 15_000
    assert answered == points
    assert untrue == 0
    assert count(stack, f"select count(*) from known_events where {weeks}") == 0
    lost = count(
        stack,
        "select count(*) from answers_in_time a where not exists (select from online_answers o where"
        " (o.use_case, o.request_id, o.position, o.entity_key, o.event_time)"
        " = (a.use_case, a.request_id, a.position, a.entity_key, a.event_time))",
    )
    assert lost == 0


def test_a_second_run_has_nothing_to_do(disturbed: dict[str, Any]) -> None:
    assert disturbed["again"].returncode == 0, disturbed["again"].stderr
    assert facts(disturbed["stack"]) == disturbed["facts"]


def test_the_report_shows_every_week_and_the_incident(disturbed: dict[str, Any], folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "blocked: broken feed" in page
    assert "the weather feed sends records with every measurement empty" in page
