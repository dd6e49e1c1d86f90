"""Bodies: what is understood, what is refused and how it is said; nothing a client sends is an error of ours."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from features.request import RequestField
from serving.request import Refusal, RequestReader
from tests.serving.online import FIELDS, MOMENT, SMALL

READER = RequestReader(FIELDS, max_events=3)


def read(document: Any) -> pa.Table:
    return READER.table(READER.read(json.dumps(document).encode()).rows)


def refusal(document: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        READER.read(document if isinstance(document, bytes) else json.dumps(document).encode())
    return caught.value


def test_an_event_becomes_a_row_with_its_moment_in_utc():
    table = read(SMALL)
    assert table.to_pylist() == [{**SMALL, "scheduled_departure": datetime(2013, 7, 4, 22, 30)}]  # noqa: DTZ001 (naive UTC)
    assert [str(kind) for kind in table.schema.types] == ["string", "int64", "string", "timestamp[us]"]


def test_a_list_keeps_its_order_and_says_that_it_is_one():
    asked = READER.read(json.dumps([{**SMALL, "flight": number} for number in (3, 1, 2)]).encode())
    assert asked.is_list
    assert READER.table(asked.rows)["flight"].to_pylist() == [3, 1, 2]
    assert not READER.read(json.dumps(SMALL).encode()).is_list


@pytest.mark.parametrize("absent", [{}, {"tailnum": None}])
def test_an_optional_field_may_be_null_or_left_out(absent):
    small = {name: value for name, value in SMALL.items() if name != "tailnum"}
    assert read({**small, **absent})["tailnum"].to_pylist() == [None]


@pytest.mark.parametrize(
    "text", ["", " ", "é" * 10_000, "a\nb\t", "Zażółć", "گچ‌پژ", "👩‍👩‍👧", "\xa0", "'\"; --", "NULL", "\\N", "%s"]
)
def test_a_text_may_be_of_any_script_empty_and_long(text: str) -> None:
    assert read({**SMALL, "tailnum": text})["tailnum"].to_pylist() == [text]


ANY_KIND = RequestReader(
    [
        RequestField(name="price", kind="double", meaning="m", example=9.99, minimum=0),
        RequestField(name="is_gift", kind="boolean", meaning="m", example=True),
        RequestField(name="day", kind="date", meaning="m", example="2013-07-04", required=False),
        RequestField(name="number", kind="bigint", meaning="m", example=1),
    ],
    max_events=3,
)
ANY = {"price": 0.1, "is_gift": False, "day": "2013-07-04", "number": 2**53 + 1}


def test_numbers_days_and_truths_are_read() -> None:
    [row] = ANY_KIND.table(ANY_KIND.read(json.dumps(ANY).encode()).rows).to_pylist()
    assert row == {**ANY, "day": datetime(2013, 7, 4)}  # noqa: DTZ001  # the midnight it begins with
    [event] = ANY_KIND.list_events(ANY_KIND.read(json.dumps({**ANY, "price": 3}).encode()).rows)
    assert (event["price"], event["day"], event["number"]) == (3.0, 1372896000 * 10**6, 2**53 + 1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("price", text) for text in ('"1"', "NaN", "Infinity", "1e999", "-0.1", "true", "1" + "0" * 400)),
        *(("is_gift", text) for text in ("0", '"true"', "1")),
        *(
            ("day", text)
            for text in ('"2013-02-30"', '"2013-7-4"', '"2013-07-04T00:00:00Z"', "20130704", '"9999-01-01"')
        ),
        *(("number", text) for text in ("9223372036854775808", "1.0", "1e3")),
    ],
)
def test_what_is_none_of_its_kind_is_refused_by_name(name: str, text: str) -> None:
    others = {other: value for other, value in ANY.items() if other != name}
    body = json.dumps(others).removesuffix("}") + f', "{name}": {text}}}'
    with pytest.raises(Refusal) as caught:
        ANY_KIND.read(body.encode())
    assert caught.value.path == name


@pytest.mark.parametrize(
    ("kind", "example", "expected"),
    [
        ("date", "2025-03-01", 'a day, like "2025-03-01"'),
        ("timestamp", "2025-03-01T08:00:00+01:00", 'a moment with its time zone, like "2025-03-01T08:00:00+01:00"'),
    ],
)
def test_a_refusal_gives_the_example_of_the_field_and_no_other(kind: Any, example: str, expected: str) -> None:
    reader = RequestReader([RequestField(name="due", kind=kind, meaning="m", example=example)], max_events=1)
    assert reader.read(json.dumps({"due": example}).encode()).rows
    with pytest.raises(Refusal) as caught:
        reader.read(b'{"due": "soon"}')
    assert caught.value.expected == expected


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"flight": "15"}, "flight"),
        ({"flight": 15.0}, "flight"),
        ({"flight": True}, "flight"),
        ({"flight": 0}, "flight"),
        ({"flight": 10**30}, "flight"),
        ({"flight": None}, "flight"),
        ({"carrier": "ua"}, "carrier"),
        ({"carrier": 5}, "carrier"),
        ({"carrier": "UA\n"}, "carrier"),
        ({"carrier": "Ü٣"}, "carrier"),
        ({"tailnum": "N\x00"}, "tailnum"),
        ({"tailnum": "\ud800"}, "tailnum"),
        ({"tailnum": "N" * 10_001}, "tailnum"),
        ({"scheduled_departure": "2013-07-04T18:30:00"}, "scheduled_departure"),
        ({"scheduled_departure": "2013-07-04"}, "scheduled_departure"),
        ({"scheduled_departure": "2013-02-30T18:30:00Z"}, "scheduled_departure"),
        ({"scheduled_departure": "2013-07-04T18:30:00+99:00"}, "scheduled_departure"),
        ({"scheduled_departure": "0001-01-01T00:00:00+10:00"}, "scheduled_departure"),
        ({"scheduled_departure": "9999-12-31T23:59:59-10:00"}, "scheduled_departure"),
        ({"scheduled_departure": "\uff12013-07-04T18:30:00Z"}, "scheduled_departure"),
        ({"scheduled_departure": 1372977000}, "scheduled_departure"),
        ({"dep_delay": 4}, "dep_delay"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(change, path):
    found = refusal({**SMALL, **change})
    assert (found.path, bool(found.expected)) == (path, True)
    assert refusal([SMALL, {**SMALL, **change}]).path == f"events[1].{path}"
    json.dumps(found.to_document()).encode()


@pytest.mark.parametrize("moment", ["2013-07-04T18:30:00Z", "2013-07-04t18:30:00z", "2013-07-04 14:30:00.000-04:00"])
def test_moments_are_rfc_3339(moment):
    assert read({**SMALL, "scheduled_departure": moment})["scheduled_departure"][0].as_py().replace(
        tzinfo=UTC
    ) == datetime(2013, 7, 4, 18, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense", b"\xff\xfe", b"null", b"[]", b"[1]", b"3", b'"x"', b"[" * 100_000, b"1" * 5000,
     b"\xef\xbb\xbf{}", json.dumps([SMALL] * 4).encode(), b"NaN", b"[[]]", b"{}"],
)  # fmt: skip
def test_a_body_that_is_no_request_is_refused(body):
    found = refusal(body)
    assert len(json.dumps(found.to_document())) < 2000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(MOMENT),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*SMALL, "x"]) | st.text(), inner),
    max_leaves=12,
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
@example(json.dumps({**SMALL, "flight": float("inf")}).encode())
def test_no_body_is_anything_but_read_or_refused(body):
    try:
        READER.table(READER.read(body).rows)
    except Refusal as refused:
        json.dumps(refused.to_document()).encode()


@given(st.dictionaries(st.sampled_from([*SMALL]), json_values))
def test_no_field_is_anything_but_read_or_refused(change):
    test_no_body_is_anything_but_read_or_refused.hypothesis.inner_test(json.dumps({**SMALL, **change}).encode())


def test_reading_events_takes_some_ten_times_what_parsing_their_json_takes():
    """In processor time, side by side: a check that grew with the events beside it would take a thousand times that."""
    reader, body = RequestReader(FIELDS, max_events=1000), json.dumps([SMALL] * 1000).encode()

    def seconds(work: Callable[[], object]) -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    parsing = min(seconds(lambda: json.loads(body)) for _ in range(5))
    assert min(seconds(lambda: reader.table(reader.read(body).rows)) for _ in range(5)) < 40 * parsing
