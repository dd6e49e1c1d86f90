"""Drift measures on made-up data: no false alarms, real shifts found, and nothing unknown called healthy."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.spec import UseCase
from tasks.build_features import profile as profiling
from tasks.monitor import drift, drift_report
from tasks.monitor.observed import Action, Observed, OtherDecision
from tasks.monitor.performance_limits import Performance, PerformanceStatus
from tasks.monitor.triage import breached_features, broken_features, persistent_features
from tests.tasks.watched import NUMBERS, ROWS, TRAINING_WEEKS, emptied, monitored, points, training, week

OLD_PROFILE = json.loads(Path(__file__).with_name("profile_6d6a10f.json").read_text())


@pytest.fixture
def small(use_case: UseCase) -> UseCase:
    return monitored(use_case)


def gappy(table: pa.Table, rows: int, column: str = "x0") -> pa.Table:
    """The table without the first values of a column."""
    values = pa.array([None] * rows + table[column].to_pylist()[rows:], pa.float64())
    return table.set_column(table.column_names.index(column), column, values)


def of(measures: list[drift.FeatureDrift], feature: str, measure: str = "psi") -> drift.FeatureDrift:
    return next(m for m in measures if (m.feature, m.measure) == (feature, measure))


def test_psi_of_a_distribution_with_itself_is_0_and_with_another_is_not() -> None:
    assert profiling.psi([10, 20, 70], [10, 20, 70]) == 0
    assert profiling.psi([10, 20, 70], [70, 20, 10]) == pytest.approx(2 * 0.6 * np.log(7), rel=0.05)
    assert np.isfinite(profiling.psi([0, 100], [100, 0]))


def test_the_correction_takes_out_what_chance_gives() -> None:
    rng = np.random.default_rng(0)
    expected = rng.multinomial(50_000, [0.1] * 10)
    drawn = rng.multinomial(500, [0.1] * 10, size=500)
    raw, corrected = profiling.psi(expected, drawn), profiling.corrected_psi(expected, drawn)
    assert raw.mean() == pytest.approx(9 * (1 / 500 + 1 / 50_000), rel=0.1)
    assert corrected.mean() < raw.mean() / 2
    assert (corrected >= 0).all()


def test_a_profile_is_json_and_survives_it(small: UseCase) -> None:
    profile = profiling.make_profile(training(), small)
    again = json.loads(json.dumps(profile, allow_nan=False))
    table = points(week(12), seed=5)
    assert drift.measure_drift(again, table, small.monitor) == drift.measure_drift(profile, table, small.monitor)
    assert again["blocks"] == TRAINING_WEEKS
    assert set(again["features"]) == {*NUMBERS, "carrier", "dest", "score"}


def test_the_training_data_itself_does_not_drift_but_shifted_data_does(small: UseCase) -> None:
    train = training()
    profile = profiling.make_profile(train, small)
    assert {m.status for m in drift.measure_drift(profile, train, small.monitor)} == {"ok"}
    # the trap: data against itself always looks fine
    assert of(drift.measure_drift(profile, train, small.monitor), "x0").value == 0
    shifted = drift.measure_drift(profile, points(week(12), seed=5, shift=1.0), small.monitor)
    assert breached_features(shifted) == set(NUMBERS)
    assert of(shifted, "x0").value > 0.5
    assert of(shifted, "carrier").status == "ok"


@pytest.mark.parametrize("week_effect", [0.0, 0.15, 0.6])
def test_without_drift_at_most_5_percent_of_weeks_alarm(small: UseCase, week_effect: float) -> None:
    """Ten champions, ten weeks each; with `week_effect`, weeks differ as they did in training, as weather does."""
    alarms, breaches, weeks = 0, 0, 0
    for seed in range(1, 11):
        profile = profiling.make_profile(training(seed, week_effect=week_effect), small)
        before: list[OtherDecision] = []
        for number in range(TRAINING_WEEKS, TRAINING_WEEKS + 10):
            table = points(week(number), seed=50_000 + 100 * seed + number, week_effect=week_effect)
            found = findings(drift.measure_drift(profile, table, small.monitor), number)
            breached = breached_features(found.drifts)
            alarms += len(persistent_features(found, before, small.monitor)) >= small.monitor.min_drifted_features
            breaches += len(breached)
            before.append(
                OtherDecision(as_of=found.as_of, network_version="1", decision=Action.IGNORE, breached=breached)
            )
            weeks += 1
    assert alarms <= 0.05 * weeks
    assert breaches <= 0.05 * weeks * (len(NUMBERS) + 2)


def test_partitions_that_are_too_small_are_looked_at_together_and_others_alone(small: UseCase) -> None:
    few = profiling.make_profile(training(rows=200, weeks=12), small)
    assert (few[profiling.TOGETHER], few["blocks"]) == (3, 4)
    assert all(feature["watched"] for feature in few["features"].values())
    assert profiling.TOGETHER not in profiling.make_profile(training(), small)
    hardly_any = profiling.make_profile(training(rows=20, weeks=24), small)
    assert hardly_any[profiling.TOGETHER] == profiling.MOST_TOGETHER
    assert not any(feature["watched"] for feature in hardly_any["features"].values()), "160 rows are too few as well"


def findings(measures: list[drift.FeatureDrift], number: int) -> Observed:
    return Observed(
        as_of=week(number).end,
        model_version="1",
        network_version="1",
        drifts=measures,
        performance=Performance(
            predicted=0, labelled=0, coverage=0, metrics={}, status=PerformanceStatus.OK, reasons=()
        ),
        born_at=week(TRAINING_WEEKS).start,
        trained_rows=1,
        new_rows=0,
    )


def test_a_restless_feature_gets_a_wider_threshold_than_a_calm_one(small: UseCase) -> None:
    calm = profiling.make_profile(training(), small)["features"]["x0"]
    restless = profiling.make_profile(training(week_effect=1.0), small)["features"]["x0"]
    assert drift.psi_threshold(calm, small.monitor) == small.monitor.min_threshold_psi
    assert drift.psi_threshold(restless, small.monitor) > 2 * small.monitor.min_threshold_psi
    assert drift.psi_threshold(restless, small.monitor) >= max(restless["block_psi"])


def test_a_profile_of_an_earlier_version_gives_the_thresholds_that_it_holds_to_the_bit(small: UseCase) -> None:
    """Made by commit 6d6a10f of such data, with the same dials: what is computed now is what was stored then."""
    features = OLD_PROFILE["features"]
    stored = {name: (old["threshold"], old["missing_threshold"]) for name, old in features.items()}
    now = {
        name: (drift.psi_threshold(old, small.monitor), drift.missing_threshold(old, small.monitor))
        for name, old in features.items()
    }
    assert now == stored
    assert len({psi for psi, _ in stored.values()}) > 3
    assert len({missing for _, missing in stored.values()}) == 3


def test_a_profile_of_today_gives_the_thresholds_that_one_of_an_earlier_version_held(small: UseCase) -> None:
    """The twin: the same training data, profiled now."""
    train = gappy(training(week_effect=0.5), ROWS * 4 // 10, "x1")
    train = train.append_column("rare", pa.array([1.0 if i % 10 == 0 else None for i in range(train.num_rows)]))
    made = profiling.make_profile(train, small)["features"]
    for name, old in OLD_PROFILE["features"].items():
        assert drift.psi_threshold(made[name], small.monitor) == old["threshold"], name
        assert drift.missing_threshold(made[name], small.monitor) == old["missing_threshold"], name
        assert {key: made[name][key] for key in old.keys() & made[name].keys()} == {
            key: value for key, value in old.items() if key not in ("threshold", "missing_threshold")
        }


def test_every_dial_but_the_bins_changes_the_next_measures_of_a_champion_trained_before(use_case: UseCase) -> None:
    """Each column of numbers moves a little, and two are emptied a little, so that each dial decides about some."""
    shipped = monitored(use_case, threshold_margin=1.0)
    profile = profiling.make_profile(training(week_effect=0.2).drop_columns(["score"]), shipped)
    table = gappy(gappy(points(week(12), seed=5, shift=0.6, rows=2 * ROWS), ROWS // 2), ROWS * 4 // 5, "x1")

    def statuses(**dials: float) -> list[str]:
        case = monitored(use_case, **{"threshold_margin": 1.0, **dials})
        return [measure.status for measure in drift.measure_drift(profile, table, case.monitor)]

    before = statuses()
    for dials, count in (
        ({"threshold_margin": 3.0}, -1),
        ({"min_threshold_psi": 3.0}, -1),
        ({"broken_missing_share": 0.1}, 1),
        ({"broken_missing_share": 0.7}, -1),
    ):
        changed = statuses(**dials).count("breach") - before.count("breach")
        assert changed * count > 0, dials
    assert "unknown" not in before
    assert set(statuses(min_rows=2 * ROWS + 1)) == {"unknown"}


def test_too_few_rows_are_unknown_never_ok(small: UseCase) -> None:
    profile = profiling.make_profile(training(), small)
    for rows in (1, 200):
        measures = drift.measure_drift(profile, points(week(12), seed=1, rows=rows), small.monitor)
        assert {m.status for m in measures} == {"unknown"}
    measures = drift.measure_drift(profile, points(week(12), seed=1).slice(0, 0), small.monitor)
    assert {(m.value, m.status) for m in measures} == {(None, "unknown")}


def test_an_empty_feature_is_missing_and_its_psi_unknown(small: UseCase) -> None:
    profile = profiling.make_profile(training(), small)
    gone = points(week(12), seed=1).drop_columns(["x1"])
    for table in (emptied(points(week(12), seed=1), "x1", "carrier"), gone):
        measures = drift.measure_drift(profile, table, small.monitor)
        assert of(measures, "x1").status == "unknown"
        assert of(measures, "x1", "missing_share").status == "breach"
        assert of(measures, "x1", "missing_share").value == 1
        assert of(measures, "x2").status == "ok"
    measures = drift.measure_drift(profile, emptied(gone, "carrier"), small.monitor)
    assert of(measures, "carrier", "missing_share").status == "breach"


def test_a_feature_that_had_a_gappy_week_in_training_is_not_broken_by_another_one(small: UseCase) -> None:
    profile = profiling.make_profile(gappy(training(), ROWS * 4 // 10), small)
    for share, status in ((0.5, "ok"), (0.65, "breach")):
        gaps = gappy(points(week(12), seed=1, rows=2 * ROWS), int(share * 2 * ROWS))
        measures = drift.measure_drift(profile, gaps, small.monitor)
        assert of(measures, "x0", "missing_share").status == status
    gaps = gappy(points(week(12), seed=1), ROWS // 2)
    whole = drift.measure_drift(profiling.make_profile(training(), small), gaps, small.monitor)
    assert of(whole, "x0", "missing_share").status == "breach"


@pytest.mark.parametrize("kind", [pa.float64(), pa.string()])
def test_a_feature_that_training_never_saw_a_value_of_does_not_block_when_it_goes_on_so(
    small: UseCase, kind: pa.DataType
) -> None:
    def without(table: pa.Table) -> pa.Table:
        return table.append_column("void", pa.nulls(table.num_rows, kind))

    profile = json.loads(json.dumps(profiling.make_profile(without(training()), small)))
    measures = drift.measure_drift(profile, without(points(week(12), seed=1)), small.monitor)
    assert of(measures, "void", "missing_share").status == "ok"
    assert "void" not in broken_features(measures)


@pytest.mark.parametrize(("weeks_without", "status"), [(9, "ok"), (1, "breach")])
def test_a_feature_of_a_season_may_be_empty_and_one_whose_feed_was_down_for_a_week_may_not(
    small: UseCase, weeks_without: int, status: str
) -> None:
    profile = profiling.make_profile(gappy(training(), weeks_without * ROWS), small)
    measures = drift.measure_drift(profile, emptied(points(week(12), seed=1), "x0"), small.monitor)
    assert of(measures, "x0", "missing_share").status == status
    assert of(measures, "x0").status == "unknown"  # in either case nobody says that it is well


def test_an_earlier_versions_profile_of_a_feature_without_a_value_does_not_block(small: UseCase) -> None:
    old = OLD_PROFILE["features"]["rare"] | {"missing_share": 1.0, "counts": [0, 0], "values": []}
    measures = drift.measure_drift({"features": {"void": old}}, points(week(12), seed=1), small.monitor)
    assert [measure.status for measure in measures] == ["ok"]


def test_nan_and_infinity_count_as_missing(small: UseCase) -> None:
    train = training()
    for odd in (np.nan, np.inf, -np.inf):
        table = points(week(12), seed=1)
        values = table["x0"].to_numpy().copy()
        values[: ROWS // 10] = odd
        measures = drift.measure_drift(
            profiling.make_profile(train, small), table.set_column(3, "x0", pa.array(values)), small.monitor
        )
        assert of(measures, "x0", "missing_share").value == pytest.approx(0.1)
        assert of(measures, "x0", "missing_share").status == "ok"


def test_constant_and_two_valued_features_are_watched_too(small: UseCase) -> None:
    train = training()
    n = train.num_rows
    train = train.append_column("constant", pa.array(np.full(n, 3.0)))
    train = train.append_column("flag", pa.array(np.arange(n) % 2))
    profile = profiling.make_profile(train, small)
    table = points(week(12), seed=1)
    same = table.append_column("constant", pa.array(np.full(ROWS, 3.0))).append_column(
        "flag", pa.array(np.arange(ROWS) % 2)
    )
    assert breached_features(drift.measure_drift(profile, same, small.monitor)) == frozenset()
    moved = table.append_column("constant", pa.array(np.full(ROWS, 2.0))).append_column(
        "flag", pa.array(np.zeros(ROWS, dtype=int))
    )
    assert breached_features(drift.measure_drift(profile, moved, small.monitor)) == {"constant", "flag"}


def test_a_new_category_is_drift(small: UseCase) -> None:
    profile = profiling.make_profile(training(), small)
    table = points(week(12), seed=1)
    carriers = pa.array(["ZZ"] * (ROWS // 3) + table["carrier"].to_pylist()[ROWS // 3 :])
    measures = drift.measure_drift(
        profile, table.set_column(table.column_names.index("carrier"), "carrier", carriers), small.monitor
    )
    assert breached_features(measures) == {"carrier"}


def named(table: pa.Table, names: list[str], *, seed: int = 0) -> pa.Table:
    """The table with a category of these names, each as likely as any other."""
    drawn = np.random.default_rng(seed).choice(names, table.num_rows)
    return table.append_column("customer", pa.array(drawn.tolist()))


CUSTOMERS = [f"C{i:04}" for i in range(1000)]  # six rows each in training, a share of .001: none is common


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (CUSTOMERS, "ok"),
        ([f"new {i}" for i in range(1000)], "breach"),  # nobody of them was there before
        ([*CUSTOMERS[:300], *(f"new {i}" for i in range(300))], "breach"),
        (CUSTOMERS[:1], "breach"),  # what a feed gives that lost the name: a value that was there, once in a thousand
        (CUSTOMERS[:250], "breach"),  # a quarter of them, neighbours in the alphabet
    ],
)
def test_a_category_without_a_common_value_drifts_when_its_values_do(
    small: UseCase, names: list[str], status: str
) -> None:
    profile = json.loads(json.dumps(profiling.make_profile(named(training(), CUSTOMERS), small)))
    assert profile["features"]["customer"]["values"] == []
    measures = drift.measure_drift(profile, named(points(week(12), seed=1), names, seed=9), small.monitor)
    assert of(measures, "customer").status == status


def test_a_category_that_is_new_in_every_row_of_every_week_is_no_drift_by_being_so(small: UseCase) -> None:
    """Its own training weeks say how many new values a week brings."""

    def numbered(table: pa.Table, prefix: str) -> pa.Table:
        return table.append_column("order", pa.array([f"{prefix}{i}" for i in range(table.num_rows)]))

    profile = profiling.make_profile(numbered(training(), "o"), small)
    measures = drift.measure_drift(profile, numbered(points(week(12), seed=1), "p"), small.monitor)
    assert of(measures, "order").status == "ok"


@pytest.mark.parametrize("why", ["too many to remember", "an earlier version's profile"])
def test_a_category_of_which_nobody_can_say_what_is_new_is_unknown(
    small: UseCase, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Its PSI was 0, whatever came."""
    train = named(training(), CUSTOMERS)
    if why == "too many to remember":
        monkeypatch.setattr(profiling, "_MAX_RARE", 500)
    profile = profiling.make_profile(train, small)
    if why == "an earlier version's profile":
        old = profile["features"]["customer"]
        del old["rare"]
        old["counts"], old["block_psi"] = [sum(old["counts"])], [0.0] * TRAINING_WEEKS
    measures = drift.measure_drift(profile, named(points(week(12), seed=1), ["x"]), small.monitor)
    assert of(measures, "customer").status == "unknown"
    assert of(measures, "customer", "missing_share").status == "ok"


def test_a_number_that_is_nearly_always_the_largest_it_can_be_drifts_when_it_no_longer_is(small: UseCase) -> None:
    def filled(table: pa.Table, share: float) -> pa.Table:
        rng = np.random.default_rng(4)
        values = np.where(rng.random(table.num_rows) < share, 1.0, rng.random(table.num_rows))
        return table.append_column("fill", pa.array(values))

    profile = profiling.make_profile(filled(training(), 0.95), small)
    for share, status in ((0.95, "ok"), (0.3, "breach")):
        measures = drift.measure_drift(profile, filled(points(week(12), seed=1), share), small.monitor)
        assert of(measures, "fill").status == status


def test_a_feature_too_sparse_to_judge_is_watched_by_its_missing_share_alone(small: UseCase) -> None:
    def sparse(table: pa.Table) -> pa.Table:
        return table.append_column("rare", pa.array([1.0 if i % 10 == 0 else None for i in range(table.num_rows)]))

    profile = profiling.make_profile(sparse(training()), small)
    measures = drift.measure_drift(profile, sparse(points(week(12), seed=1)), small.monitor)
    assert [(m.measure, m.status) for m in measures if m.feature == "rare"] == [("missing_share", "ok")]


def test_prediction_drift_is_a_measure_of_its_own(small: UseCase) -> None:
    profile = profiling.make_profile(training(), small)
    table = points(week(12), seed=1)
    moved = table.append_column("score", pa.array(np.random.default_rng(0).beta(6, 2, ROWS)))
    assert of(drift.measure_drift(profile, moved, small.monitor), "score", "score_psi").status == "breach"


def test_no_training_rows_is_an_error_that_says_so(small: UseCase) -> None:
    with pytest.raises(ValueError, match="no training rows"):
        profiling.make_profile(training().slice(0, 0), small)


def test_our_psi_agrees_with_evidentlys_where_the_bins_are_the_same(small: UseCase) -> None:
    """Text features are binned by value in both; ours adds half a row a bin and takes chance out: within .01."""
    train, current = training(), points(week(12), seed=1)
    shifted = pa.array(np.random.default_rng(3).choice(["AA", "UA", "B6"], ROWS, p=[0.2, 0.3, 0.5]))
    current = current.set_column(current.column_names.index("carrier"), "carrier", shifted)
    profile = profiling.make_profile(train, small)
    html, theirs = drift_report.draw_report(profile, train, current, small.monitor)
    ours = {m.feature: m.value for m in drift.measure_drift(profile, current, small.monitor) if m.measure == "psi"}
    assert theirs["carrier"] > 0.3
    assert ours["carrier"] == pytest.approx(theirs["carrier"], abs=0.01)
    assert set(theirs) == {*NUMBERS, "carrier", "dest"}
    assert "<html" in html


def test_evidentlys_report_survives_empty_and_infinite_columns(small: UseCase) -> None:
    profile = profiling.make_profile(training(), small)
    current = emptied(points(week(12), seed=1), "x0", "carrier")
    current = current.set_column(4, "x1", pa.array([np.inf, *[0.5] * (ROWS - 1)]))
    _, values = drift_report.draw_report(profile, training(), current, small.monitor)
    assert {"x0", "carrier"}.isdisjoint(values)
    assert "x1" in values
