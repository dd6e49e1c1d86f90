"""The page of a definition's words is what the code says."""

from infra.docs import FEATURES
from infra.feature_page import render_features


def test_the_page_of_words_is_up_to_date() -> None:
    assert FEATURES.read_text() == render_features(), "run `python -m infra.docs`"
