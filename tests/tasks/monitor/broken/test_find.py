"""Each fault of a feed is seen, and its twin is not: partitions as they are, and changes of the world."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from tasks.monitor.broken.columns import ROWS, Columns, read_columns
from tasks.monitor.broken.find import FEWEST_PARTITIONS, find_faults
from tasks.monitor.broken.relations import Relations
from tasks.monitor.broken.signs import Sign, name_unit

START = datetime(2013, 1, 7, tzinfo=UTC)
WEEK = timedelta(days=7)
CARRIERS = ("UA", "AA", "B6", "DL")


def draw_week(number: int, rows: int = 2000, *, delay: float = 1.0, share: float = 1.0) -> pa.Table:
    """A week of flights: distances and their minutes, temperatures in steps, delays that tell of each other, counts.

    `delay` multiplies all delays, `share` thins the flights: the world changes. Weeks differ in weather and delays.
    """
    rng = np.random.default_rng(1000 + number)
    rows = int(rows * share)
    seconds = np.sort(rng.uniform(0, WEEK.total_seconds(), rows))
    times = [START + number * WEEK + timedelta(seconds=int(second)) for second in seconds]
    warmth, trouble = rng.normal(0, 2), delay * rng.lognormal(0, 0.2)
    carrier = rng.choice(CARRIERS, rows, p=[0.4, 0.3, 0.2, 0.1])
    miles = np.array([200, 700, 1100, 2400])[rng.integers(0, 4, rows)] + 10 * rng.integers(0, 5, rows)
    hour = seconds % 86400 / 3600
    temperature = 50 + warmth + 8 * np.sin((hour - 9) / 24 * 2 * np.pi) + rng.normal(0, 3, rows)
    queue = trouble * rng.gamma(2, 6, rows)
    count = rng.poisson(9 * share, rows)
    return pa.table(
        {
            "prediction_time": pa.array(times, pa.timestamp("us", "UTC")),
            "carrier": pa.array(carrier),
            "miles": miles.astype(np.float64),
            "minutes": (miles / 8 + rng.normal(30, 6, rows)).round(),
            "temperature": np.round(temperature / 1.8) * 1.8,
            "dewpoint": np.round((temperature - rng.gamma(2, 3, rows)) / 1.8) * 1.8,
            "queue": queue,
            "delay": np.where(rng.random(rows) < 0.05, np.nan, queue * rng.lognormal(0, 0.3, rows)),
            "flights": count.astype(np.float64),
            "seats": rng.choice([50.0, 100.0, 180.0], rows),
        }
    )


PAST = [read_columns(draw_week(number)) for number in range(FEWEST_PARTITIONS)]
NOW = read_columns(draw_week(FEWEST_PARTITIONS))


def changed(name: str, values: object) -> Columns:
    if name in NOW.numbers:
        return replace(NOW, numbers={**NOW.numbers, name: np.asarray(values, np.float64)})
    return replace(NOW, texts={**NOW.texts, name: np.asarray(values, np.object_)})


def seen(now: Columns) -> set[tuple[str, Sign]]:
    return {(fault.feature, fault.sign) for fault in find_faults(PAST, now) or ()}


def swapped() -> Columns:
    numbers = {**NOW.numbers, "miles": NOW.numbers["seats"], "seats": NOW.numbers["miles"]}
    return replace(NOW, numbers=numbers)


def some(share: float, values: np.ndarray, then: float) -> np.ndarray:
    return np.where(np.random.default_rng(5).random(len(values)) < share, then, values)


FAULTS: dict[str, tuple[Callable[[], Columns], set[tuple[str, Sign]]]] = {
    "one value again and again": (
        lambda: changed("queue", np.full(NOW.rows, NOW.numbers["queue"][0])), {("queue", Sign.STUCK)},
    ),
    "one carrier again and again": (
        lambda: changed("carrier", np.full(NOW.rows, "UA", np.object_)), {("carrier", Sign.STUCK)},
    ),
    "Celsius": (
        lambda: changed("temperature", (NOW.numbers["temperature"] - 32) / 1.8), {("temperature", Sign.APART)},
    ),
    "metres a second between steps": (
        lambda: changed("miles", NOW.numbers["miles"] * 0.9), {("miles", Sign.NEW_VALUES)},
    ),
    "hours in place of minutes": (lambda: changed("queue", NOW.numbers["queue"] / 60), {("queue", Sign.APART)}),
    "counted twice": (lambda: changed("flights", NOW.numbers["flights"] * 2), {("flights", Sign.DOUBLED)}),
    "ten thousand times": (lambda: changed("delay", NOW.numbers["delay"] * 1e4), {("delay", Sign.FAR)}),
    "a millionth": (lambda: changed("minutes", NOW.numbers["minutes"] / 1e6), {("minutes", Sign.FAR)}),
    "last week's": (lambda: changed("queue", PAST[-1].numbers["queue"]), {("queue", Sign.REPEATED)}),
    "half a week late": (lambda: changed("minutes", np.roll(NOW.numbers["minutes"], 1000)), {("minutes", Sign.APART)}),
    "a quarter lost": (lambda: changed("delay", some(0.25, NOW.numbers["delay"], np.nan)), {("delay", Sign.EMPTIER)}),
    "seven in a hundred lost": (
        lambda: changed("minutes", np.where(np.arange(NOW.rows) < 0.07 * NOW.rows, np.nan, NOW.numbers["minutes"])),
        {("minutes", Sign.EMPTIER)},
    ),
    "-999 for what is not known": (
        lambda: changed("delay", some(0.25, NOW.numbers["delay"], -999)), {("delay", Sign.STUCK)},
    ),
    "columns mistaken": (swapped, {("miles", Sign.STUCK)}),
    "lower case": (
        lambda: changed("carrier", [value.lower() for value in NOW.texts["carrier"]]), {("carrier", Sign.NEW_VALUES)},
    ),
    "some in lower case": (
        lambda: changed("carrier", [v.lower() if n % 20 == 0 else v for n, v in enumerate(NOW.texts["carrier"])]),
        {("carrier", Sign.NEW_VALUES)},
    ),
}  # fmt: skip


def test_a_few_in_a_hundred_that_are_missing_are_no_fault() -> None:
    lost = np.where(np.arange(NOW.rows) < 0.04 * NOW.rows, np.nan, NOW.numbers["minutes"])
    assert seen(changed("minutes", lost)) == set()


def draw_noise(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=rows)


def with_rate(
    past: list[Columns], now: Columns, rates: list[float], name: str = "rate", noise: float = 0.01
) -> tuple[list[Columns], Columns]:
    """The same with a number that is one a partition, but for noise, as an overall rate of the days before is."""
    every = [
        replace(
            columns,
            numbers={
                **columns.numbers,
                name: rate + noise * np.random.default_rng(ord(name[-1])).normal(size=columns.rows),
            },
        )
        for columns, rate in zip([*past, now], rates, strict=True)
    ]
    return every[:-1], every[-1]


def test_a_number_of_the_whole_partition_that_jumps_alone_is_a_fault_and_with_others_a_change() -> None:
    """Three such rates, of which one jumps, or all do; of fewer nobody can tell which it is."""
    rising = [5.0 + 0.3 * n for n in range(len(PAST))]
    for jumping, expected in ((0, []), (1, ["rate 0"]), (3, [])):
        past, now = list(PAST), NOW
        for number in range(3):
            past, now = with_rate(past, now, [*rising, 5.0 if number < jumping else rising[-1] + 0.2], f"rate {number}")
        assert [fault.feature for fault in find_faults(past, now)] == expected, jumping
    past, now = with_rate(PAST, NOW, [*rising, 5.0])
    assert find_faults(past, now) == []


def test_what_has_one_value_a_partition_is_not_stuck() -> None:
    """An exchange rate a week, the day of the month, a holiday: another value each time, or one seldom seen."""
    for values in ([1.1 + 0.01 * n for n in range(13)], [n + 1.0 for n in range(13)], [0.0] * 12 + [1.0]):
        past, now = with_rate(PAST, NOW, values, noise=0.0)
        assert find_faults(past, now) == [], values
    texts = [f"2013-01-{n:02}" for n in range(len(PAST) + 1)]
    dated = [
        replace(columns, texts={**columns.texts, "day": np.full(columns.rows, text, np.object_)})
        for columns, text in zip([*PAST, NOW], texts, strict=True)
    ]
    assert find_faults(dated[:-1], dated[-1]) == []


def test_predictions_that_are_all_made_at_one_hour_are_looked_at_like_others() -> None:
    """Snapshots: the clock says the same of every row."""
    every = [replace(columns, clock=np.tile(NOW.clock[:1], (columns.rows, 1))) for columns in [*PAST, NOW]]
    assert find_faults(every[:-1], every[-1]) == []
    late = replace(every[-1], numbers=FAULTS["half a week late"][0]().numbers)
    assert find_faults(every[:-1], late)


def test_texts_that_are_always_new_are_no_fault() -> None:
    def named(columns: Columns, number: int) -> Columns:
        ids = np.array([f"N{number}-{row}" for row in range(columns.rows)], np.object_)
        return replace(columns, texts={**columns.texts, "id": ids})

    past = [named(columns, number) for number, columns in enumerate(PAST)]
    assert find_faults(past, named(NOW, 99)) == []
    long = changed("carrier", np.full(NOW.rows, "x" * 100_000, np.object_))
    assert max(len(fault.seen) for fault in find_faults(PAST, long)) < 200


def test_what_seldom_happens_may_happen() -> None:
    """Rain after a dry season, snow as the first ever."""
    rng = np.random.default_rng(5)
    for before, now_share in ((0.0, 0.01), (0.001, 0.05)):
        every = [
            replace(columns, numbers={**columns.numbers, "rain": (rng.random(columns.rows) < share).astype(np.float64)})
            for columns, share in zip([*PAST, NOW], [before] * len(PAST) + [now_share], strict=True)
        ]
        assert find_faults(every[:-1], every[-1]) == []


def test_partitions_that_differ_in_columns_are_held_against_each_other_by_those_they_share() -> None:
    odd = replace(PAST[0], texts={**PAST[0].texts, "gate": np.full(PAST[0].rows, "A", np.object_)})
    without = {name: values for name, values in NOW.numbers.items() if name != "seats"}
    as_text = {**NOW.texts, "seats": np.full(NOW.rows, None, np.object_)}
    for now in (replace(NOW, numbers=without), replace(NOW, numbers=without, texts=as_text)):
        assert find_faults([odd, *PAST[1:]], now) == []
    stuck = {**without, "queue": np.full(NOW.rows, 7.0)}
    assert [f.feature for f in find_faults([odd, *PAST[1:]], replace(NOW, numbers=stuck))] == ["queue"]


def test_the_partition_before_is_known_again_among_more_rows_than_are_looked_at() -> None:
    past = [read_columns(draw_week(number, rows=3 * ROWS)) for number in range(FEWEST_PARTITIONS)]
    last, now = draw_week(FEWEST_PARTITIONS - 1, rows=3 * ROWS), draw_week(50, rows=3 * ROWS + 100)
    repeated = pa.concat_arrays([last["queue"].combine_chunks(), last["queue"].combine_chunks().slice(0, 100)])
    again = now.set_column(now.column_names.index("queue"), "queue", repeated)
    assert (("queue", Sign.REPEATED)) in {(f.feature, f.sign) for f in find_faults(past, read_columns(again))}


MATES = {
    "Celsius": {"temperature", "dewpoint"},
    "hours in place of minutes": {"queue", "delay"},
    "half a week late": {"miles", "minutes"},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen_at_the_feature_that_has_it(name: str) -> None:
    make, expected = FAULTS[name]
    found = seen(make())
    if mates := MATES.get(name):  # of two that tell each other nobody can tell which one is wrong
        assert {sign for _, sign in found} == {sign for _, sign in expected}
        assert {feature for feature, _ in found} <= mates
    else:
        assert {feature for feature, _ in found} == {feature for feature, _ in expected}
        assert expected <= found


def test_partitions_as_they_are_show_nothing() -> None:
    for number in range(FEWEST_PARTITIONS, 40):
        assert find_faults(PAST, read_columns(draw_week(number))) == [], number


@pytest.mark.parametrize("delay", [0.4, 0.6, 1.8, 3.0])
def test_delays_that_grow_or_fade_together_are_a_change(delay: float) -> None:
    assert find_faults(PAST, read_columns(draw_week(20, delay=delay))) == []


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_fewer_flights_than_ever_are_a_change(share: float) -> None:
    assert find_faults(PAST, read_columns(draw_week(20, share=share))) == []


def test_another_carrier_or_one_that_is_gone_is_a_change() -> None:
    carriers = NOW.texts["carrier"]
    another = changed("carrier", np.where(np.arange(NOW.rows) % 3 == 0, "ZZ", carriers))
    gone = changed("carrier", np.where(carriers == "UA", "AA", carriers))
    assert find_faults(PAST, another) == []
    assert find_faults(PAST, gone) == []


def test_a_unit_is_named_where_undoing_it_explains_all() -> None:
    def named(feature: str, values: np.ndarray) -> str | None:
        return name_unit([columns.numbers[feature] for columns in PAST], values)

    warm, queue = NOW.numbers["temperature"], NOW.numbers["queue"]
    assert named("temperature", (warm - 32) / 1.8) == "looks like degrees Celsius in place of Fahrenheit"
    assert str(named("queue", queue / 60)).endswith("times too small")
    assert str(named("queue", queue * 100)).endswith("times as large")
    assert named("temperature", warm) is named("queue", queue * 1.3) is None
    faults = find_faults(PAST, FAULTS["Celsius"][0]())
    assert any("in place of Fahrenheit" in fault.seen for fault in faults if fault.feature == "temperature")


def test_of_too_few_partitions_or_rows_nobody_can_tell() -> None:
    stuck = FAULTS["one value again and again"][0]()
    assert find_faults(PAST[: FEWEST_PARTITIONS - 1], stuck) is None
    assert find_faults(PAST[:FEWEST_PARTITIONS], stuck)
    few = read_columns(draw_week(20, rows=450))
    assert find_faults(PAST, replace(few, numbers={**few.numbers, "queue": np.ones(few.rows)})) is None


def test_a_feature_that_is_nowhere_or_the_same_in_all_the_past_breaks_nothing() -> None:
    def with_odd(columns: Columns) -> Columns:
        odd = {"empty": np.full(columns.rows, np.nan), "constant": np.ones(columns.rows)}
        texts = {**columns.texts, "none": np.full(columns.rows, None, np.object_)}
        return replace(columns, numbers={**columns.numbers, **odd}, texts=texts)

    past = [with_odd(columns) for columns in PAST]
    assert find_faults(past, with_odd(NOW)) == []
    appeared = with_odd(NOW)
    assert find_faults(past, replace(appeared, numbers={**appeared.numbers, "empty": np.ones(NOW.rows)})) == []


def test_what_is_left_out_neither_tells_nor_is_told() -> None:
    relations = Relations(PAST)
    late = FAULTS["half a week late"][0]()
    strains = relations.measure(late)
    assert strains["minutes"].slope > 5
    assert strains["miles"].slope > 2, "told by what is late, it seems to be off itself"
    without = relations.measure(late, ("minutes",))
    assert "minutes" not in without
    assert max(strain.most for strain in without.values()) < 3


def test_columns_are_read_evenly_and_what_is_no_number_is_missing() -> None:
    table = draw_week(3, rows=3 * ROWS)
    spoiled = table["queue"].to_numpy().copy()
    spoiled[0] = np.inf
    columns = read_columns(table.set_column(table.column_names.index("queue"), "queue", pa.array(spoiled)))
    assert (columns.rows, columns.partition_rows) == (ROWS, 3 * ROWS)
    assert columns.missing("queue")[0]
    assert not columns.missing("carrier").any()
    assert set(columns.numbers) | set(columns.texts) == set(table.column_names) - {"prediction_time"}


@pytest.mark.parametrize("counts", [False, True])
def test_features_that_have_nothing_to_do_with_each_other_show_nothing(*, counts: bool) -> None:
    """Noise among few partitions, and counts whose rates are another each time: of 60 at most one is blocked."""
    blocked = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)

        def noise(rng: np.random.Generator = rng) -> Columns:
            numbers = {
                f"x{n}": rng.poisson(rng.lognormal(-1.5, 0.5), 600).astype(np.float64)
                if counts
                else rng.normal(0, 1, 600)
                for n in range(30 if counts else 10)
            }
            return Columns(numbers=numbers, texts={}, clock=NOW.clock[:600], partition_rows=600)

        blocked += find_faults([noise() for _ in range(FEWEST_PARTITIONS)], noise()) != []
    assert blocked <= 1
