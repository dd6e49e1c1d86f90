"""A feature definition as JSON, and back: it travels with the model that learnt it, and outlives a change of features/.

A definition is data, and the digest says whether this code computes the same from it. So while a champion of an older
definition answers, both can be computed side by side. Nothing but SQL of that definition is run, on the same engines.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from features.engine import FeatureSet
from features.request import RequestField
from features.vocabulary import AsOf, Preceding, SourceTable, Window

_KINDS = {"string": "varchar", "integer": "bigint"}  # of requests, as bundles had them before
_SPAN = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")  # as bundles had it before they had seconds


def to_document(definition: FeatureSet) -> str:
    """JSON text. The order of names is kept: steps build on those before them, and columns break ties in theirs."""
    return json.dumps(asdict(definition) | {"look_back": definition.look_back.total_seconds()}, indent=1)


def from_document(text: str, digest: str, *, like: FeatureSet) -> FeatureSet:
    """The definition that `to_document` wrote, with this digest.

    Bundles written before the order of names was kept have them sorted; they are put in the order of `like`.

    Raises:
        ValueError: it is no definition, or this code would compute something else than the digest stands for.
    """
    try:
        document = json.loads(text)
        readings = (document, _in_order_of(document, asdict(like)))
        by_digest = {definition.digest(): definition for definition in map(_read, readings)}
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"not a feature definition: {error!r}") from error
    if digest in by_digest:
        return by_digest[digest]
    raise ValueError(f"this code does not compute the features {digest[:12]} from their definition")


def _read(document: Mapping[str, Any]) -> FeatureSet:
    nested = {
        "sources": {name: SourceTable(**_with_tuples(source)) for name, source in document["sources"].items()},
        "look_back": _span(document["look_back"]),
        "request": tuple(_request_field(field) for field in document["request"]),
        "lookups": {name: AsOf(**lookup) for name, lookup in document["lookups"].items()},
        "windows": tuple(Window(**_with_tuples(window)) for window in document["windows"]),
        "joined": tuple(Preceding(**_with_tuples(joined)) for joined in document["joined"]),
    }
    return FeatureSet(**{**document, **nested})


def _request_field(field: dict[str, Any]) -> RequestField:
    return RequestField(**{**field, "kind": _KINDS.get(field["kind"], field["kind"])})


def _span(written: float | str) -> timedelta:
    if not isinstance(written, str):
        return timedelta(seconds=written)
    if (parts := _SPAN.fullmatch(written)) is None:
        raise TypeError(f"look_back is {written!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _with_tuples(value: Any) -> Any:
    """Lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(value)
    return {name: _with_tuples(each) for name, each in value.items()} if isinstance(value, dict) else value


def _in_order_of(value: Any, like: Any) -> Any:
    """Names in the order that they have in something like it; those that it does not have come last."""
    if isinstance(value, dict) and isinstance(like, dict):
        names = [*(name for name in like if name in value), *(name for name in value if name not in like)]
        return {name: _in_order_of(value[name], like.get(name)) for name in names}
    if isinstance(value, list) and isinstance(like, list | tuple):
        return [_in_order_of(each, other) for each, other in zip(value, [*like, *value][: len(value)], strict=True)]
    return value
