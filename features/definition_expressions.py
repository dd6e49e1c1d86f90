"""A definition's expressions, compiled: what makes an event's moment, a point, and its features."""

from collections.abc import Mapping
from dataclasses import dataclass

from features.engine import FeatureSet, features_sql
from features.expressions import CompiledExpressions, compile_expressions
from features.plan import SeriesPlan
from features.series import list_series, point_kinds

REQUEST = "asked."  # the prefix of what clients send, as definitions write it in expressions


@dataclass(frozen=True, kw_only=True)
class CompiledDefinition:
    """Its programs, the fields of a request that they may read, and how each series becomes columns."""

    request: tuple[str, ...]
    event_time: CompiledExpressions
    points: CompiledExpressions
    features: CompiledExpressions
    plans: Mapping[str, SeriesPlan]


def compile_definition(definition: FeatureSet) -> CompiledDefinition:
    """What answers a request by a definition.

    Raises:
        ValueError: an expression uses what is not supported online.
    """
    kinds = point_kinds(definition)
    series = list_series(definition, kinds)
    plans = {each.name: SeriesPlan.of(definition, each) for each in series}
    request = {name: kind for name, kind in kinds.items() if name.startswith(REQUEST)}
    fields = {f"{each.lookup[0]}.{f}": k for each in series if each.lookup for f, k in each.columns.items()}
    points = {n.removeprefix("points."): k for n, k in kinds.items() if n.startswith("points.")}
    looked_up = {n: k for plan in plans.values() for n, k in plan.kinds.items()}
    return CompiledDefinition(
        request=tuple(request),
        event_time=compile_expressions({"event_time": definition.point_sql["event_time"]}, request),
        points=compile_expressions(definition.point_sql, request | fields),
        features=compile_expressions(features_sql(definition), points | looked_up),
        plans=plans,
    )


def refuse_for_spark(definition: FeatureSet) -> None:
    """Nothing, where Spark gives every expression of a definition the same bits.

    Raises:
        ValueError: it does not, or one is not supported at all.
    """
    compiled = compile_definition(definition)
    for row in sorted(compiled.points.operations | compiled.features.operations, key=lambda row: row.sql):
        if row.not_on_spark:
            raise ValueError(f"no translation for Spark: {row.sql} of {', '.join(row.takes)}: {row.not_on_spark}")
