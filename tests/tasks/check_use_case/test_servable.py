"""A training is planned on what can be judged and served; what cannot is named before anything is searched."""

from dataclasses import replace

import pytest

import features
from adapters.connect import Outside
from features import FeatureSet
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features import build
from tasks.check_use_case.servable import require_servable
from tests.tasks.build_features.test_build import put
from tests.tasks.check_use_case.test_declared import number
from tests.tasks.check_use_case.test_params import change

FLIGHTS = features.definition("flights")
SHIFTED = number("humidity", f"({FLIGHTS.numeric_sql['humidity']}) + 1")
ENGINELESS = number("odd", "len(regexp_extract_all(carrier, '.'))")


@pytest.fixture
def snapshot(outside: Outside, use_case: UseCase) -> Snapshot:
    put(outside, use_case, 0, 1)
    made = build.build_snapshot(use_case, outside)
    assert made is not None
    return made


def define(monkeypatch: pytest.MonkeyPatch, definition: FeatureSet) -> None:
    monkeypatch.setitem(features._DEFINITIONS, "flights", definition)


def refuse(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> str:
    with pytest.raises(ValueError, match="no search begins") as refused:
        require_servable(use_case, snapshot, snapshot.end, outside)
    return str(refused.value)


def test_what_is_shipped_may_be_searched(
    use_case: UseCase, snapshot: Snapshot, outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    require_servable(use_case, snapshot, snapshot.end, outside)
    assert "nothing stands against a search of flights" in capsys.readouterr().out


def test_each_thing_that_could_not_be_judged_or_served_is_named(
    use_case: UseCase, snapshot: Snapshot, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        define(patched, ENGINELESS)
        assert "features/flights.py  odd: " in refuse(use_case, snapshot, outside)

    with monkeypatch.context() as patched:
        define(patched, SHIFTED)
        told = refuse(use_case, snapshot, outside)
        assert "humidity: of 64 events asked as a client does, some have another value than in batch" in told
        require_servable(
            use_case.model_copy(update={"endpoint": None}), snapshot, snapshot.end, outside
        )  # nobody asks it

    from features import flights

    with monkeypatch.context() as patched:
        patched.setattr(flights, "BLANKS", ("owner: who answers for it",), raising=False)
        assert "owner: who answers for it: is yet to be done" in refuse(use_case, snapshot, outside)


def test_how_often_a_model_is_judged_or_retrained_stops_no_training(
    use_case: UseCase, snapshot: Snapshot, outside: Outside
) -> None:
    """The whole check names it; a person may want it, and what is trained is no worse for it."""
    often = change(use_case, {"monitor.max_age_days": 7})
    require_servable(often, snapshot, snapshot.end, outside)


def test_keys_that_contradict_each_other_are_told_and_stop_no_training(
    use_case: UseCase, snapshot: Snapshot, outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search that can never fill its workers is slow, and no worse for it."""
    crowded = change(use_case, {"train.trials_at_once": 16})
    require_servable(crowded, snapshot, snapshot.end, outside)
    said = capsys.readouterr().out
    assert "params.yaml:" in said
    assert "flights.train.trials_at_once: 16 of 9" in said


def test_a_latest_partition_without_events_is_passed_over(
    use_case: UseCase, snapshot: Snapshot, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = replace(snapshot, end=snapshot.end + (snapshot.end - snapshot.start))
    define(monkeypatch, SHIFTED)
    assert "humidity: of 64 events" in refuse(use_case, longer, outside)
