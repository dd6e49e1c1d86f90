"""What a model sees: one definition a use case, used by training, batch scoring and monitoring."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa

from features import offline
from features.document import from_document
from features.engine import FeatureSet, Span
from features.flights import FLIGHTS

_DEFINITIONS = {FLIGHTS.name: FLIGHTS}


def definition(name: str) -> FeatureSet:
    """The feature definition of a use case.

    Raises:
        ValueError: no use case of that name has one.
    """
    if name not in _DEFINITIONS:
        raise ValueError(f"no features for {name!r}: write features/{name}.py and add it to features/__init__.py")
    return _DEFINITIONS[name]


def learnt_definition(name: str, digest: str, document: str) -> FeatureSet:
    """The definition that a model learnt: today's where it has this digest, else the one in the model's document.

    Raises:
        ValueError: no use case of that name has features, or this code cannot compute what the digest stands for.
    """
    today = definition(name)
    return today if today.digest() == digest else from_document(document, digest, like=today)


def build(
    definition: FeatureSet,
    tables: Mapping[str, Sequence[Path]],
    interval: Span,
    lead: timedelta,
    *,
    engine: str = "duckdb",
) -> tuple[pa.Table, pa.Table]:
    """Points and labels by an engine, as `features.offline.build_offline` says; every engine gives the same bits.

    This name and `definition` stay: code committed with old dataset versions is called by them.

    Raises:
        ValueError: there is no such engine, or a source is not as declared.
    """
    if engine == "duckdb":
        return offline.build_offline(definition, tables, interval, lead)
    if engine == "spark":
        from features import spark  # noqa: PLC0415  # an extra, and Java

        return spark.build_on_spark(definition, tables, interval, lead)
    raise ValueError(f"no feature engine {engine!r}: expected duckdb or spark")


__all__ = ["FeatureSet", "build", "definition", "learnt_definition"]
