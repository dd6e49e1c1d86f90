"""Which of the series that a move left unsettled are cut anew first."""

from features.flights import FLIGHTS
from features.series import list_series, point_kinds
from features.unsettled import UnsettledSeries

SMALL, MIXED = "outcomes(dest)", "outcomes(tailnum)"


def unsettle(sizes: dict[str, int]) -> UnsettledSeries:
    """After a move, each carries so many bytes."""
    unsettled = UnsettledSeries(list_series(FLIGHTS, point_kinds(FLIGHTS)))
    unsettled.note_stored(dict.fromkeys(sizes, b"settled"), dict.fromkeys(sizes, b"recent"))
    for text, size in sizes.items():
        unsettled.carry(text, [bytes(size)])
    unsettled.mark_moved(set(), {SMALL, MIXED})
    return unsettled


def test_a_busy_stream_cuts_large_ones_wherever_they_are_and_then_a_few_of_the_others() -> None:
    small = {f"{SMALL}[{n}]": 511 for n in range(100)}
    large = [f"{MIXED}[{n}]" for n in range(2)]  # of a series that carries less, so that it comes later
    unsettled = unsettle(small | dict.fromkeys(large, 512) | {f"{MIXED}[{n}]": 0 for n in range(2, 100)})
    assert unsettled.list_first(256, is_busy=True) == large
    first = unsettled.list_first(256, is_busy=False)
    assert (len(first), set(first) <= small.keys()) == (32, True)  # 16 kB at once
    for text in large:
        unsettled.settle(text)
    assert len(unsettled.list_first(256, is_busy=True)) == 32
    assert len(unsettled.list_first(5, is_busy=True)) == 5
    while first := unsettled.list_first(256, is_busy=True):
        for text in first:
            unsettled.settle(text)
    assert not unsettled


def test_what_was_never_carried_is_cut_while_busy_too() -> None:
    """As after a restart, where nothing is carried."""
    unsettled = UnsettledSeries(list_series(FLIGHTS, point_kinds(FLIGHTS)))
    unsettled.mark_stored((f"{SMALL}[{n}]", True, True) for n in range(3))
    assert len(unsettled.list_first(256, is_busy=True)) == 3
