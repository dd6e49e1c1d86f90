"""Whether both versions answered their shares: by simulation, looked at as often as the real thing; and in the tables,
with rows that are lost, come late, or are asked again."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from adapters.gateway import Route
from tasks.deploy.experiment import experiment
from tasks.deploy.experiment.sample_ratio import RATIO_LEVEL, KeyCount, find_mismatch, is_ratio_broken
from tests.tasks.deploy.experiment.planting import Answer, draw_keys, ledger, looks, plant, start

BATCH = 200


def draw(runs: int, keys: int, *, share: float, seed: int, kept: float = 1.0) -> NDArray[np.int64]:
    """How many of the keys were the treatment's at each look, [runs, looks]; of its rows a share `kept` was left."""
    left = share * kept / (share * kept + 1 - share)
    drawn = np.random.default_rng(seed).random((runs, keys)) < left
    return drawn.cumsum(axis=1)[:, BATCH - 1 :: BATCH]


def find_first(treated: NDArray[np.int64], share: float, level: float = RATIO_LEVEL / 2) -> int | None:
    """After how many keys a run is stopped; None where it never is."""
    for look, count in enumerate(treated.tolist(), 1):
        if is_ratio_broken([KeyCount(share=share, keys=look * BATCH, treated=count)], level=level):
            return look * BATCH
    return None


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_a_ratio_that_holds_is_not_stopped_however_often_it_is_looked_at(share):
    found = [find_first(run, share) for run in draw(200, 10_000, share=share, seed=1)]
    assert found.count(None) == len(found)
    # At a level at which something happens, no more happens than it says.
    loose = [find_first(run, share, level=0.1) for run in draw(200, 10_000, share=share, seed=1)]
    assert 0 < len(loose) - loose.count(None) <= 0.1 * len(loose)


def test_sabotage_a_chi_square_test_repeated_at_every_look_stops_too_many():
    treated = draw(2000, 10_000, share=0.3, seed=2)
    keys = BATCH * np.arange(1, treated.shape[1] + 1)
    statistic = (treated - 0.3 * keys) ** 2 / (keys * 0.3 * 0.7)
    assert (statistic > chi2.isf(RATIO_LEVEL, 1)).any(axis=1).mean() > 5 * RATIO_LEVEL


@pytest.mark.parametrize(("share", "most"), [(0.5, 5000), (0.3, 6000), (0.05, 30_000)])
def test_the_loss_of_a_fifth_of_the_treatments_rows_is_found(share, most):
    found = [find_first(run, share) for run in draw(50, most, share=share, seed=3, kept=0.8)]
    assert None not in found


def test_the_loss_of_a_fifth_of_the_controls_rows_is_found_as_well():
    assert None not in [find_first(run, 0.3) for run in draw(50, 8000, share=0.3, seed=4, kept=1 / 0.8)]


def test_a_share_that_moves_is_no_mismatch_and_sabotage_one_share_for_all_would_be():
    """It moves by what it has drawn itself, as Thompson sampling does."""
    stopped = {"its own": 0, "one for all": 0}
    for seed in range(100):
        rng, share, counts = np.random.default_rng(seed), 0.3, list[KeyCount]()
        for _ in range(60):
            counts.append(KeyCount(share=share, keys=BATCH, treated=int(rng.binomial(BATCH, share))))
            share = min(max(share + 0.5 * (counts[-1].treated / BATCH - share) + 0.02, 0.05), 0.95)
            if is_ratio_broken(counts, level=RATIO_LEVEL / 2):
                stopped["its own"] += 1
                break
        pooled = KeyCount(share=0.3, keys=len(counts) * BATCH, treated=sum(count.treated for count in counts))
        stopped["one for all"] += is_ratio_broken([pooled], level=RATIO_LEVEL / 2)
    assert stopped["its own"] == 0
    assert stopped["one for all"] > 90


WHOLE = [KeyCount(share=0.3, keys=5000, treated=1480), KeyCount(share=0.9, keys=1000, treated=905)]
LESS = [KeyCount(share=0.3, keys=4700, treated=1180), KeyCount(share=0.9, keys=820, treated=725)]


def test_what_does_not_hold_is_said_with_its_counts():
    assert find_mismatch([], []) is None
    assert find_mismatch(WHOLE, WHOLE) is None
    because = "the treatment gave 1905 (34.51%), where 2148 (38.91%) were drawn for it"
    assert find_mismatch(LESS, WHOLE) == f"of 5520 keys that were answered {because}"
    assert find_mismatch(WHOLE, LESS) == f"of 5520 keys of events with a known outcome {because}"


# Through the tables.


def minutes_ago(minutes: float) -> datetime:
    return datetime.now(UTC) - timedelta(minutes=minutes)


@pytest.fixture
def begun(use_case, outside, gateway) -> None:
    """An experiment that was started two hours ago."""
    start(use_case, outside, ago=timedelta(hours=2))


@pytest.mark.parametrize(
    ("left", "outcome"),
    [
        ({}, "treatment-better: the treatment costs"),
        ({"kept": 0.8}, r"sample-ratio-mismatch: of 4[67]\d\d keys that were answered the treatment gave 1[12]\d\d "),
        ({"told": 0.8}, r"sample-ratio-mismatch: of 4[67]\d\d keys of events with a known outcome the treatment "),
    ],
)
def test_where_a_fifth_of_the_treatments_rows_or_outcomes_is_lost_nothing_is_concluded(
    use_case, outside, begun, left, outcome
):
    plant(outside, draw_keys(5000, share=0.3, seed=1, at=minutes_ago(60), costly=0.05, **left))
    said = experiment.judge_experiment(use_case, outside)
    assert re.search(f"ended as {outcome}", said), said
    assert outside.gateway.now == Route("7")
    assert ledger(outside) == ["experiment-start by ada", "experiment-end by experiment"]
    [alert] = outside.warehouse.query("select tier from alerts")
    assert alert["tier"] == ("critical" if left else "warning")
    look = looks(outside)[-1]
    assert (look["control_keys"] > 3400, look["treatment_keys"] < 1300) == (True, "kept" in left)
    assert outcome.startswith(look["decision"])


def test_a_client_that_asks_often_is_one_key_and_its_requests_taken_for_keys_would_be_a_mismatch(
    use_case, outside, gateway, begun
):
    at = minutes_ago(60)
    asked = [
        Answer(version=version, key=f"{entity} {n}", entity=entity, at=at + timedelta(minutes=n))
        for version, entities, times in (("7", range(70), 1), ("8", range(70, 100), 50))
        for entity in map(str, entities)
        for n in range(times)
    ]
    plant(outside, asked)
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    assert (looks(outside)[-1]["control_keys"], looks(outside)[-1]["treatment_keys"]) == (70, 30)
    outside.warehouse.execute("update online_answers set entity_id = null")
    plant(outside, draw_keys(100, share=0.3, seed=1, at=minutes_ago(5)))
    assert "sample-ratio-mismatch" in experiment.judge_experiment(use_case, outside)


def test_a_body_of_many_events_is_one_key(use_case, outside, gateway, begun):
    at = minutes_ago(60)
    plant(outside, (Answer(version="8", key=f"due-{n}", request="due", at=at) for n in range(300)))
    plant(outside, draw_keys(1000, share=0.3, seed=1, at=at))
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    look = looks(outside)[-1]
    assert 990 < look["control_keys"] + look["treatment_keys"] <= 1001


def test_what_was_asked_before_the_share_was_in_force_is_left_out_and_counted_would_be_a_mismatch(
    use_case, outside, gateway, begun
):
    waiting = draw_keys(500, share=0.0, seed=1, at=minutes_ago(119.8))
    plant(outside, [*waiting, *draw_keys(1000, share=0.3, seed=2, at=minutes_ago(60))])
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    assert looks(outside)[-1]["control_keys"] < 750
    outside.warehouse.execute("update experiment_looks set routed_at = routed_at - interval '1 minute' where look = 0")
    assert "sample-ratio-mismatch" in experiment.judge_experiment(use_case, outside)


def test_each_key_counts_by_the_share_of_its_first_answer_and_by_another_it_would_be_a_mismatch(
    use_case, outside, gateway, begun
):
    outside.warehouse.execute(
        "insert into experiment_looks select (jsonb_populate_record(l, jsonb_build_object('look', 1, 'share', 0.9,"
        " 'looked_at', looked_at + interval '1 hour', 'routed_at', routed_at + interval '1 hour'))).*"
        " from experiment_looks l"
    )
    first = [replace(one, entity=one.key) for one in draw_keys(1500, share=0.3, seed=1, at=minutes_ago(100))]
    again = [replace(one, version="8", key=f"again {one.key}", at=minutes_ago(50)) for one in first]
    waiting = draw_keys(500, share=0.3, seed=2, at=minutes_ago(59.9))  # asked before the share moved
    plant(outside, [*first, *again, *waiting, *draw_keys(1500, share=0.9, seed=3, at=minutes_ago(40))])
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    look = looks(outside)[-1]
    assert 2980 < look["control_keys"] + look["treatment_keys"] <= 3000  # but those after the last of one version
    outside.warehouse.execute("update experiment_looks set share = 0.8 where look > 0")
    plant(outside, draw_keys(100, share=0.9, seed=4, at=minutes_ago(5)))
    assert "sample-ratio-mismatch" in experiment.judge_experiment(use_case, outside)


def test_rows_that_are_on_their_way_are_no_mismatch_and_those_that_have_not_come_for_a_day_are(
    use_case, outside, gateway
):
    start(use_case, outside, ago=timedelta(days=3))
    plant(outside, draw_keys(500, share=0.3, seed=1, at=minutes_ago(120)))
    plant(outside, draw_keys(2000, share=0.3, seed=2, at=minutes_ago(60), kept=0.0))
    assert experiment.judge_experiment(use_case, outside).endswith("goes on")
    outside.warehouse.execute("update online_answers set answered_at = answered_at - interval '1 day'")
    assert "sample-ratio-mismatch" in experiment.judge_experiment(use_case, outside)
