"""A definition that went with a model comes back as it was, or not at all."""

import json
from dataclasses import asdict, replace
from datetime import timedelta

import pytest

import features
from features.document import from_document, to_document

FLIGHTS = features.definition("flights")
OLDER = replace(
    FLIGHTS,
    look_back=timedelta(days=40, hours=1),
    numeric_sql={name: sql for name, sql in FLIGHTS.numeric_sql.items() if name != "humidity"} | {"one": "1.0"},
)


@pytest.mark.parametrize("definition", [FLIGHTS, OLDER], ids=["today's", "older"])
def test_it_comes_back_equal_in_every_order(definition):
    again = from_document(to_document(definition), definition.digest(), like=FLIGHTS)
    assert again == definition
    assert list(again.steps) == list(definition.steps)
    assert [list(source.columns) for source in again.sources.values()] == [
        list(source.columns) for source in definition.sources.values()
    ]


def written_before(definition) -> str:
    """As bundles had it: names sorted, kinds of requests in other words, moments as text."""
    document = asdict(definition)
    words = {"varchar": "string", "bigint": "integer"}
    document["request"] = [{**field, "kind": words.get(field["kind"], field["kind"])} for field in document["request"]]
    return json.dumps(document, indent=1, sort_keys=True, default=str)


def test_a_bundle_from_before_the_order_was_kept_is_put_in_todays_order():
    assert from_document(written_before(OLDER), OLDER.digest(), like=FLIGHTS) == OLDER


def test_what_another_digest_stands_for_is_refused():
    changed = to_document(FLIGHTS).replace("3 hours", "4 hours")
    with pytest.raises(ValueError, match="does not compute the features"):
        from_document(changed, FLIGHTS.digest(), like=FLIGHTS)
    with pytest.raises(ValueError, match="does not compute the features"):
        from_document(to_document(FLIGHTS), "f" * 64, like=FLIGHTS)


@pytest.mark.parametrize("text", ["{}", "[]", '"steps"', "no JSON", '{"sources": {"a": {"columns": 1}}}'])
def test_what_is_no_definition_is_refused_with_its_reason(text):
    with pytest.raises(ValueError, match="not a feature definition"):
        from_document(text, FLIGHTS.digest(), like=FLIGHTS)


def test_a_model_of_todays_features_needs_no_document():
    assert features.learnt_definition("flights", FLIGHTS.digest(), "") is FLIGHTS
    assert features.learnt_definition("flights", OLDER.digest(), to_document(OLDER)) == OLDER
