"""The page of types says what the code does."""

from infra.docs import TYPES_PAGE
from infra.type_docs import render_type_page


def test_the_page_of_types_is_up_to_date() -> None:
    assert TYPES_PAGE.read_text() == render_type_page(), "run `python -m infra.docs`"
