"""The schema of a use case's endpoint as OpenAPI 3.1, made from the fields of its requests."""

from collections.abc import Sequence
from typing import Any

from features.request import RequestField
from serving.request import MAX_EXPLAINED, describe_expected

Json = dict[str, Any]

_ANSWER: Json = {
    "request_id": {"type": "string", "description": "of the HTTP request, for questions about this answer"},
    "model_version": {"type": "string"},
    "decision": {"type": ["boolean", "null"], "description": "true where acting on it costs less than not acting"},
    "entity_key": {"type": "string"},
    "event_time": {"type": "string", "format": "date-time"},
    "prediction_time": {"type": "string", "format": "date-time", "description": "nothing known later was used"},
    "feature_age_seconds": {"type": ["number", "null"], "description": "how far history lags; null: there was none"},
    "known_until": {
        "type": ["string", "null"],
        "format": "date-time",
        "description": "all that became known before was in the history; null: there was none",
    },
    "degraded": {"type": "boolean", "description": "answered with less than usual; see reasons"},
    "reasons": {"type": "array", "items": {"type": "string"}},
}
_BOUNDS: Json = {
    "lower": {"type": ["number", "null"], "description": "of the interval around the value; null: the model has none"},
    "upper": {"type": ["number", "null"], "description": "of the same interval"},
}
_REFUSAL: Json = {
    "error": {"type": "string"},
    "path": {"type": "string", "description": "of the field that is wrong"},
    "expected": {"type": "string"},
}


def describe_endpoint(
    *, use_case: str, title: str, fields: Sequence[RequestField], kind: str, lead_minutes: int, max_events: int
) -> Json:
    """What clients may send, and what they get."""
    event = _object({f.name: _field(f) for f in fields}, [f.name for f in fields if f.required])
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": "1",
            "description": f"Asked {lead_minutes} minutes before the event, or about any moment before.",
        },
        "security": [{"key": []}],
        "paths": {
            f"/v1/{use_case}/predict": _path("One event, or a list: an answer each", "Answer", max_events),
            f"/v1/{use_case}/explain": _path(
                "What each feature added to the answer", "Explanation", min(max_events, MAX_EXPLAINED)
            ),
        },
        "components": {
            "schemas": {
                "Event": event | {"additionalProperties": False},
                "Answer": _answer(kind),
                "Explanation": _explanation(kind),
                "Refusal": _object(_REFUSAL, list(_REFUSAL)),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _object(properties: Json, required: list[str]) -> Json:
    return {"type": "object", "properties": properties, "required": required}


def _field(field: RequestField) -> Json:
    kinds: dict[str, Json] = {
        "varchar": {"type": "string"},
        "bigint": {"type": "integer"},
        "double": {"type": "number"},
        "boolean": {"type": "boolean"},
        "date": {"type": "string", "format": "date"},
        "timestamp": {"type": "string", "format": "date-time"},
    }
    schema = kinds[field.kind] | {
        "description": f"{field.meaning}: {describe_expected(field)}",
        "examples": [field.example],
    }
    limits = {
        "pattern": field.pattern and f"^(?:{field.pattern})$",
        "minimum": field.minimum,
        "maximum": field.maximum,
    }
    schema |= {name: value for name, value in limits.items() if value is not None}
    return schema if field.required else schema | {"type": [schema["type"], "null"]}


def _answer(kind: str) -> Json:
    score: Json = (
        {"probability": {"type": "number", "minimum": 0, "maximum": 1}}
        if kind == "binary"
        else {"value": {"type": "number"}, **_BOUNDS}
    )
    return _object(score | _ANSWER, [*score, *_ANSWER])


def _explanation(kind: str) -> Json:
    more: Json = {
        "baseline": {"type": "number", "description": "the answer when nothing but averages is known"},
        "attributions": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "what each feature added: with the baseline they add up to the answer",
        },
    }
    answer = _answer(kind)
    return _object(answer["properties"] | more, [*answer["required"], *more])


def _path(summary: str, answer: str, max_events: int) -> Json:
    return {
        "post": {
            "summary": summary,
            "requestBody": {
                "required": True,
                "content": _content(_one_or_many("Event", {"minItems": 1, "maxItems": max_events})),
            },
            "responses": {
                "200": {"description": "answered", "content": _content(_one_or_many(answer, {}))},
                "400": {"description": "refused", "content": _content(_reference("Refusal"))},
                "401": {"description": "no key, or an unknown one"},
                "413": {"description": "the body is too large"},
                "429": {"description": "too many requests"},
            },
        }
    }


def _content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _one_or_many(name: str, limits: Json) -> Json:
    return {"oneOf": [_reference(name), {"type": "array", "items": _reference(name), **limits}]}
