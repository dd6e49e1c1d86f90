"""What a model sees: one definition a use case, used by training, batch scoring and monitoring.

A use case's definition is the `FeatureSet` of the module that has its name.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa

from features import offline
from features.document import from_document
from features.engine import FeatureSet, Span

_DEFINITIONS: dict[str, FeatureSet] = {}  # those that were asked for


def definition(name: str) -> FeatureSet:
    """The feature definition of a use case.

    Raises:
        ValueError: no module of that name holds one.
    """
    if name not in _DEFINITIONS:
        _DEFINITIONS[name] = _find_definition(name)
    return _DEFINITIONS[name]


def _find_definition(name: str) -> FeatureSet:
    if not name.isidentifier() or find_spec(f"{__name__}.{name}") is None:
        raise ValueError(f"no features for {name!r}: write features/{name}.py, with a FeatureSet of that name")
    held = {key: one for key, one in vars(import_module(f"{__name__}.{name}")).items() if isinstance(one, FeatureSet)}
    found = [one for one in held.values() if one.name == name]
    if len({id(one) for one in found}) != 1:
        there = ", ".join(f"{key} ({one.name!r})" for key, one in held.items()) or "none"
        raise ValueError(f"no features for {name!r}: expected one FeatureSet of that name in features/{name}.py,"
                         f" which has {there}")  # fmt: skip
    return found[0]


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
