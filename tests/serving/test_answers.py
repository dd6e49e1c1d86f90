"""Batches of requests: one lookup, one answer an event, each request by itself."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import features
from models.attribution import Attributions
from models.interval import ConformalInterval
from serving.answers import Answerer, InferenceRequest, ServingOptions, read_inference_request
from serving.openapi import describe_endpoint
from serving.prediction_log import LOGGED
from serving.request import RequestReader
from tests.serving.online import AS_OF, FIELDS, OPTIONS, SMALL, Echo, Halves

OPT = ServingOptions.from_document({**OPTIONS, "use_case": "flights", "version": "7", "bundle_sha256": "x"})


def explain(table: pa.Table) -> Attributions:
    score = Halves().predict(table)
    values = np.stack([score - 0.1, np.zeros(len(score))], axis=1)
    return Attributions(names=("flight", "empty"), values=values, baseline=0.1, prediction=score, residual=score * 0)


def answerer(lookup: Echo | None = None, log: Any = None, **options: Any) -> Answerer:
    return Answerer(
        options=replace(OPT, **options),
        reader=RequestReader(FIELDS, max_events=20),
        lookup=lookup or Echo(),
        predictor=Halves(),
        explain=explain,
        log=log or (lambda _: None),
    )


def asked(document: Any, **about: Any) -> InferenceRequest:
    return InferenceRequest(body=json.dumps(document).encode(), **{"request_id": "r1", **about})


def test_one_event_in_one_answer_out_a_list_in_a_list_out():
    one, many = answerer().answer([asked(SMALL), asked([SMALL])])
    assert json.loads(one.body) == {
        "probability": pytest.approx(0.0015), "request_id": "r1", "model_version": "7", "decision": False,
        "entity_key": "UA", "event_time": "2013-07-04T22:30:00+00:00", "prediction_time": "2013-07-04T20:30:00+00:00",
        "feature_age_seconds": 1800.0, "known_until": "2013-07-04T20:00:00+00:00", "degraded": False, "reasons": [],
    }  # fmt: skip
    assert json.loads(many.body) == [json.loads(one.body)]


@pytest.mark.parametrize(("events", "explained"), [(1, True), (16, True), (17, False)])
def test_more_events_are_answered_than_explained_and_the_refusal_says_how_many(events, explained):
    plain, why = answerer().answer([asked([SMALL] * events), asked([SMALL] * events, explain=True)])
    assert (plain.status, plain.events) == (200, events)
    assert why.status == (200 if explained else 400)
    if not explained:
        refusal = json.loads(why.body)
        assert (refusal["path"], refusal["expected"]) == ("body", "1 to 16 events to explain")


def test_the_schema_says_how_many_events_are_answered_and_explained():
    about = {"use_case": "f", "title": "t", "fields": FIELDS, "kind": "binary", "lead_minutes": 1}

    def most(path: str, max_events: int) -> int:
        operation = describe_endpoint(**about, max_events=max_events)["paths"][f"/v1/f/{path}"]["post"]
        return operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"][1]["maxItems"]

    assert (most("predict", 256), most("explain", 256)) == (256, 16)
    assert (most("predict", 5), most("explain", 5)) == (5, 5)


def test_a_batch_is_looked_up_once_and_every_request_gets_its_own_answers():
    lookup = Echo()
    calls = [asked([{**SMALL, "flight": n} for n in numbers], request_id=str(numbers)) for numbers in ((1, 2), (3,))]
    replies = [json.loads(reply.body) for reply in answerer(lookup).answer([calls[0], asked([]), calls[1]])]
    assert lookup.lookups == 1
    assert [[row["probability"] for row in reply] for reply in (replies[0], replies[2])] == [
        pytest.approx([0.0001, 0.0002]), pytest.approx([0.0003])
    ]  # fmt: skip
    assert {row["request_id"] for row in replies[0]} == {"(1, 2)"}


def test_a_refused_request_is_a_400_and_its_neighbours_do_not_notice():
    good, bad = answerer().answer([asked(SMALL), asked({**SMALL, "flight": "x"})])
    assert (good.status, bad.status) == (200, 400)
    assert json.loads(bad.body)["path"] == "flight"


def test_only_refused_requests_are_answered_without_a_lookup():
    lookup = Echo()
    assert [reply.status for reply in answerer(lookup).answer([asked([]), asked(3)])] == [400, 400]
    assert lookup.lookups == 0


def test_the_decision_is_yes_from_the_threshold_on():
    threshold = float(Halves().predict(pa.table({"flight": pa.array([1667.0], pa.float32())}))[0])
    events = [{**SMALL, "flight": n} for n in (1666, 1667)]
    [reply] = answerer(threshold=threshold).answer([asked(events)])
    assert [row["decision"] for row in json.loads(reply.body)] == [False, True]


def test_without_costs_nothing_is_decided():
    [reply] = answerer(threshold=None).answer([asked(SMALL)])
    assert json.loads(reply.body)["decision"] is None


def test_a_regression_answers_a_value_and_without_an_interval_no_bounds():
    [reply] = answerer(kind="regression", threshold=None).answer([asked(SMALL)])
    answer = json.loads(reply.body)
    assert (answer["value"], answer["lower"], answer["upper"]) == (pytest.approx(0.0015), None, None)


def test_an_interval_is_answered_and_logged_with_the_value_it_is_around(monkeypatch):
    interval = ConformalInterval(coverage=0.9, rows=99, low=-1.0, high=2.0, knots=(0.0, 1.0), scales=(0.1, 1.1))
    monkeypatch.setattr(Halves, "interval", interval)
    written = []
    events = [{**SMALL, "flight": flight} for flight in (5000, 1000)]
    [reply] = answerer(kind="regression", threshold=None, log=written.append).answer([asked(events)])
    answers = json.loads(reply.body)
    assert [(a["value"], a["lower"], a["upper"]) for a in answers] == [
        pytest.approx((0.5, -0.1, 1.7)), pytest.approx((0.1, -0.1, 0.5))
    ]  # fmt: skip
    [rows] = written
    assert [(r["score"], r["lower"], r["upper"]) for r in rows] == [
        (a["value"], a["lower"], a["upper"]) for a in answers
    ]


@pytest.mark.parametrize("name", ["flights", "taxi"])
def test_each_field_is_described_by_an_example_of_its_own_use_case(name: str) -> None:
    fields = features.definition(name).request
    about = {"use_case": name, "title": "t", "kind": "binary", "lead_minutes": 1, "max_events": 9}
    described = describe_endpoint(**about, fields=fields)["components"]["schemas"]["Event"]["properties"]
    moments = {field.name: field.example for field in fields if field.kind == "timestamp"}
    assert moments
    for moment, example in moments.items():
        assert described[moment]["description"].endswith(f': a moment with its time zone, like "{example}"')


@pytest.mark.parametrize(("kind", "has_bounds"), [("regression", True), ("binary", False)])
def test_the_schema_has_every_field_of_an_answer_and_bounds_where_there_may_be_some(kind, has_bounds):
    [reply] = answerer(kind=kind).answer([asked(SMALL)])
    answer = json.loads(reply.body)
    about = {"use_case": "f", "title": "t", "fields": FIELDS, "kind": kind, "lead_minutes": 1, "max_events": 9}
    schema = describe_endpoint(**about)["components"]["schemas"]["Answer"]
    assert set(schema["properties"]) == set(schema["required"]) == set(answer)
    assert ({"lower", "upper"} <= set(answer)) is has_bounds


def test_what_is_unknown_is_answered_and_flagged():
    [reply] = answerer().answer([asked([SMALL, {**SMALL, "carrier": "XX"}])])
    known, unknown = json.loads(reply.body)
    assert (known["degraded"], known["reasons"]) == (False, [])
    assert (unknown["degraded"], unknown["reasons"]) == (True, ["no history for XX"])
    assert (reply.events, reply.degraded) == (2, 1)


@pytest.mark.parametrize(("hours", "degraded"), [(191.4, False), (191.6, True)])
def test_history_older_than_the_limit_is_flagged(hours, degraded):
    lookup = Echo(as_of=AS_OF - timedelta(hours=hours))  # asked about half an hour after AS_OF
    [reply] = answerer(lookup).answer([asked(SMALL)])
    assert json.loads(reply.body)["degraded"] is degraded


def test_an_answer_without_a_store_has_no_age():
    [reply] = answerer(Echo(as_of=None)).answer([asked(SMALL)])
    assert json.loads(reply.body)["feature_age_seconds"] is None
    assert json.loads(reply.body)["known_until"] is None


def test_only_those_of_a_mixed_batch_who_ask_are_explained_and_it_adds_up():
    plain, explained = answerer().answer([asked(SMALL), asked([{**SMALL, "flight": 5000}], explain=True)])
    assert "attributions" not in json.loads(plain.body)
    [row] = json.loads(explained.body)
    assert row["baseline"] + sum(row["attributions"].values()) == pytest.approx(row["probability"])


def test_what_is_logged_is_what_was_answered_with_the_features_and_the_request():
    written = []
    calls = [asked([SMALL, {**SMALL, "carrier": "XX"}], request_id="a", slot="candidate", client="c"), asked([])]
    [reply, _] = answerer(log=written.append).answer(calls)
    [rows] = written
    answers = json.loads(reply.body)
    assert [(row["request_id"], row["position"], row["slot"], row["client"]) for row in rows] == [
        ("a", 0, "candidate", "c"), ("a", 1, "candidate", "c")
    ]  # fmt: skip
    assert [row["score"] for row in rows] == [answer["probability"] for answer in answers]
    assert [row["reasons"] for row in rows] == [answer["reasons"] for answer in answers]
    assert rows[0]["features"]["flight"] == 15.0
    assert rows[0]["request"] == SMALL
    assert rows[0].keys() == set(LOGGED)


def test_headers_name_the_request_and_are_made_up_where_absent_or_absurd():
    given = read_inference_request(
        b"", {"x-request-id": "abc", "X-Windsock-Slot": "stable", "X-WINDSOCK-CLIENT": "ops", "explain": "True"}
    )
    assert (given.request_id, given.slot, given.client, given.explain) == ("abc", "stable", "ops", True)
    bare = read_inference_request(None, {"X-Request-Id": "a" * 101, "X-Windsock-Slot": "a\x00"})
    assert (len(bare.request_id), bare.slot, bare.client, bare.explain) == (36, "direct", "direct", False)


def test_options_that_miss_something_are_refused():
    with pytest.raises(ValueError, match="bundle_sha256, use_case, version"):
        ServingOptions.from_document(OPTIONS)


def test_moments_are_told_in_utc():
    [reply] = answerer().answer([asked({**SMALL, "scheduled_departure": "2013-07-05T00:30:00+02:00"})])
    assert datetime.fromisoformat(json.loads(reply.body)["event_time"]) == datetime(2013, 7, 4, 22, 30, tzinfo=UTC)
