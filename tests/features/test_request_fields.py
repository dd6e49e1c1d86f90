"""What a definition says of its sources and of a client's fields is refused where it names no kind."""

import pytest

from features.request import RequestField
from features.vocabulary import declare_source


def test_a_field_of_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"flight: expected a kind among .*bigint.*, got 'integer'"):
        RequestField(name="flight", kind="integer", meaning="number", example=1)
    assert RequestField(name="flight", kind="bigint", meaning="number", example=1).required


def test_columns_keep_the_order_of_their_declaration_and_an_unknown_kind_is_refused() -> None:
    assert list(declare_source(timestamp="known_at", varchar="b a").columns) == ["known_at", "b", "a"]
    with pytest.raises(ValueError, match=r"expected kinds of columns among .*, got \['text'\]"):
        declare_source(text="carrier")
