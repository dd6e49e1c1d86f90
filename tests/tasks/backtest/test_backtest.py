"""A branch is tried on real flights by its own code: nothing changes nothing, a leak is refused, production stays."""

import json
import subprocess
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import features
from expectations import suites
from infra.replay.flights_source import FLIGHTS_REPLAYED
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase
from tasks.backtest import __main__ as command
from tasks.backtest.compare import Side, compare_sides, describe
from tasks.backtest.side import AboutSide, SideRequest
from tasks.backtest.worktree import bare_environment, resolve_commit
from tasks.ingest.check import to_canonical
from tests.models.test_training import recipe

START, AS_OF, UNTIL = (datetime(*day, tzinfo=UTC) for day in ((2012, 12, 31), (2013, 2, 4), (2013, 2, 25)))
HONEST, LEAKING = "greatest(m.known_at, s.known_at) as known_at", "s.known_at as known_at"


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This code as a repository of its own, with a branch that changes nothing, one that leaks and one that breaks."""
    folder = tmp_path_factory.mktemp("checkout")
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.split("\0"):
        if name and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "as it is")
    flights = folder / "features/flights.py"
    honest = flights.read_text()
    assert honest.count(HONEST) == 1
    branches = {
        "no-op": honest + "\n# a comment\n",
        "leak": honest.replace(HONEST, LEAKING),
        "broken": honest.replace("kind = 'arrived' and", "kind = 'arrived' und"),
    }
    for branch, text in branches.items():
        git(folder, "checkout", "--quiet", "-b", branch, "main")
        flights.write_text(text)
        git(folder, "commit", "--quiet", "-am", branch)
    git(folder, "checkout", "--quiet", "main")
    return folder


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> SideRequest:
    """Eight weeks of the real flights, as clean files; three of them are to be answered."""
    folder, files = tmp_path_factory.mktemp("clean"), {}
    tables, checks = FLIGHTS_REPLAYED.source.read_rows(), suites("flights")
    for name in features.definition("flights").sources:
        files[name] = [str(folder / f"{name}.parquet")]
        pq.write_table(to_canonical(tables[name], checks[name]), files[name][0])
    plan = recipe(epochs=3, hidden_units=32, seeds=(1, 2, 3)).to_document()
    return SideRequest(
        use_case="flights",
        files=files,
        start=START.isoformat(),
        as_of=AS_OF.isoformat(),
        until=UNTIL.isoformat(),
        recipe={name: value for name, value in plan.items() if name not in {"numeric", "categorical"}},
        output="",
    )


def run(checkout, request_of, use_case, ref, folder):
    commits = [resolve_commit(checkout, name) for name in ("main", ref)]
    folder.mkdir()
    return command.run_sides(use_case, commits, request_of, folder, repository=checkout)


@pytest.fixture
def use_case(use_case: UseCase) -> UseCase:
    return use_case.model_copy(update={"gate": use_case.gate.model_copy(update={"resamples": 400})})


def test_a_branch_that_changes_nothing_differs_in_no_bit(checkout, request_of, use_case, tmp_path):
    found = run(checkout, request_of, use_case, "no-op", tmp_path / "no-op")
    assert found.is_the_same
    assert found.rows > 10_000
    assert (found.differing, found.only_ours, found.only_theirs) == (0, 0, 0)
    assert describe(use_case, found)[-1].startswith("verdict    the same")
    assert git(checkout, "worktree", "list").count("\n") == 0, "nothing is left of the worktrees"
    assert git(checkout, "status", "--porcelain") == ""


def test_sabotage_a_branch_that_reads_the_future_is_refused(checkout, request_of, use_case, tmp_path):
    found = run(checkout, request_of, use_case, "leak", tmp_path / "leak")
    assert not found.is_the_same
    assert found.differing > 0.9 * found.rows
    assert found.judgement.answer == "refuse"
    assert "leak-alarm" in found.judgement.codes, found.judgement.reasons


def test_a_branch_whose_code_breaks_is_said_with_its_own_words(checkout, request_of, use_case, tmp_path):
    with pytest.raises(ValueError, match=r"ended with 1:\n(.*\n)*.*und"):
        run(checkout, request_of, use_case, "broken", tmp_path / "broken")
    assert git(checkout, "worktree", "list").count("\n") == 0


def test_a_branch_that_is_not_there_is_named(checkout):
    with pytest.raises(ValueError, match="no commit 'nowhere' in this checkout: fetch its branch first"):
        resolve_commit(checkout, "nowhere")


def test_the_code_of_a_branch_gets_no_address_and_no_secret(tmp_path):
    given = {
        "PATH": "/bin",
        "WINDSOCK_WAREHOUSE_DSN": "postgres://",
        "AWS_SECRET_ACCESS_KEY": "s",
        "SLACK_BOT_TOKEN": "t",
    }
    assert bare_environment(tmp_path, given) == {
        "PATH": "/bin",
        "PYTHONPATH": str(tmp_path),
        "HOME": str(tmp_path),
    }


def planted(commit: str, score: np.ndarray, label: np.ndarray, *, first: int = 0, digest: str = "d") -> Side:
    rows = len(score)
    times = (
        pa.array([AS_OF.timestamp() * 1e6 + n * 6e7 for n in range(rows)])
        .cast(pa.int64())
        .cast(pa.timestamp("us", "UTC"))
    )
    answers = pa.table(
        {
            "entity_key": [str(n + first) for n in range(rows)], "event_time": times, "prediction_time": times,
            "label": label, "carrier": ["AA"] * rows, "origin": ["JFK"] * rows, "score": score, "member_0": score,
        }
    )  # fmt: skip
    about = AboutSide(features_digest=digest, columns=2, training_rows=9, features_seconds=1.0, training_seconds=2.0)
    return Side(commit=commit, about=about, answers=answers)


def test_only_rows_that_both_answered_are_compared_and_the_others_counted(use_case):
    draw = np.random.default_rng(0)
    score = draw.uniform(0.1, 0.9, 20_000)
    label = (draw.random(20_000) < score).astype(float)
    ours = planted("a" * 40, np.full(20_000, 0.5), label)
    theirs = planted("b" * 40, score[:19_000], label[:19_000])
    found = compare_sides(use_case, theirs, ours, AS_OF)
    assert (found.rows, found.only_ours, found.only_theirs) == (19_000, 1000, 0)
    assert not found.is_the_same
    assert found.judgement.answer == "promote"
    said = "\n".join(describe(use_case, found))
    assert "19,000 answered by both, 19,000 of them otherwise; 1,000 only by today's code" in said
    assert "branch     features 1.0 s, training 2.0 s on 9 rows" in said
    elsewhere = replace(theirs, answers=planted("b" * 40, score, label, first=10**6).answers)
    with pytest.raises(ValueError, match="no event is a point of both"):
        compare_sides(use_case, elsewhere, ours, AS_OF)


def test_the_same_answers_of_other_features_are_not_the_same(use_case):
    score = np.random.default_rng(0).uniform(0.1, 0.9, 20_000)
    label = np.round(score)
    same = [planted(name * 40, score, label, digest=digest) for name, digest in (("a", "d"), ("b", "d"), ("c", "e"))]
    assert compare_sides(use_case, same[1], same[0], AS_OF).is_the_same
    assert not compare_sides(use_case, same[2], same[0], AS_OF).is_the_same


def test_production_is_hashed_whatever_the_order_of_its_rows_and_what_changes_is_named(outside, use_case):
    outside.__dict__["registry"] = SimpleNamespace(aliases=lambda _name: {"champion": "1"})

    def insert(entity, score):
        outside.warehouse.execute(
            "insert into predictions (use_case, entity_key, event_time, model_version, prediction_time, score,"
            " snapshot_version) values ('flights', %s, now(), '1', now(), %s, 's')",
            (entity, score),
        )

    insert("a", 0.1)
    insert("b", 0.2)
    before = command.hash_production(use_case, outside)
    assert command.describe_production(before, command.hash_production(use_case, outside)).endswith(": unchanged")
    outside.warehouse.execute("update predictions set score = 0.3 where entity_key = 'a'")
    outside.__dict__["registry"] = SimpleNamespace(aliases=lambda _name: {"champion": "2"})
    told = command.describe_production(before, command.hash_production(use_case, outside))
    assert told == "production went on meanwhile: predictions, aliases"


def test_a_request_is_read_as_it_was_written(request_of):
    assert SideRequest(**json.loads(json.dumps(asdict(request_of)))) == request_of
