"""What COPY writes is read as its types say; one value that a type does not have costs its own column, and no other."""

import pyarrow as pa
import pytest

from adapters import copying
from adapters.column_types import UTC_MICROSECONDS, ReadColumn
from adapters.copying import name_unread, read_copy

COLUMNS = [
    ReadColumn("placed_at", UTC_MICROSECONDS),
    ReadColumn("amount", pa.decimal128(6, 2)),
    ReadColumn("count", pa.int64()),
]


@pytest.fixture
def each(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The numbers that were read one by one."""
    read, fit = list[str](), copying._fit_number
    monkeypatch.setattr(copying, "_fit_number", lambda text, *more: read.append(text) or fit(text, *more))
    return read


def test_an_infinite_date_leaves_numbers_to_be_read_at_once(each: list[str]) -> None:
    table = read_copy(b"infinity,12.50,7\n2025-01-06 10:00:00+00,,9007199254740993\n", COLUMNS)
    assert table["placed_at"].null_count == 1
    assert table[name_unread("placed_at")].to_pylist() == ["infinity", None]
    assert [str(value) for value in table["amount"].to_pylist()] == ["12.50", "None"]
    assert table["count"].to_pylist() == [7, 9007199254740993]
    assert each == []


def test_a_number_that_is_none_is_found_one_by_one_in_its_own_column(each: list[str]) -> None:
    table = read_copy(b"2025-01-06 10:00:00+00,NaN,7\n2025-01-06 10:00:00+00,1.25,8\n", COLUMNS)
    assert table["amount"].null_count == 1
    assert table[name_unread("amount")].to_pylist() == ["NaN", None]
    assert table["count"].to_pylist() == [7, 8]
    assert each == ["NaN", "1.25"]
