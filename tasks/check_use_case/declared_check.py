"""Whether expectations and features agree with the use case's block, and the definition with each of its engines."""

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec

import duckdb

import features
from adapters.column_types import KIND_ROWS
from expectations import suites
from expectations.vocabulary import Suite
from features import FeatureSet
from features.engine import ANY_DAY, KEY_COLUMNS, compile_sql, run_steps
from features.online import OnlineFeatures
from features.windows import column_names
from pipeline.spec import UseCase
from tasks.check_use_case.mistakes import Mistake, in_file, in_params

_KINDS = {row.kind: row.feature_kinds for row in KIND_ROWS}
_TAKEN = {*KEY_COLUMNS, "label", "label_time", "score", "decision", "model_version", "point_id"}
_UNSTEADY = ("now", "current_date", "current_timestamp", "today", "random", "uuid", "get_current_timestamp")
_WHOLE = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT"}
_CACHE_BYTES = 1 << 20


def find_suites(use_case: UseCase) -> tuple[Mapping[str, Suite], list[Mistake]]:
    """The suites of a use case; none, and why, where it has none."""
    try:
        return suites(use_case.name), []
    except ValueError as error:
        file = f"expectations/{use_case.name}.py"
        return {}, [in_file(file, "SUITES", str(error), f"a suite a table in {file}")]


def find_definition(use_case: UseCase) -> tuple[FeatureSet | None, list[Mistake]]:
    """The features of a use case; none, and why, where it has none."""
    try:
        return features.definition(use_case.name), []
    except ValueError as error:
        file = f"features/{use_case.name}.py"
        return None, [in_file(file, use_case.name, str(error), f"a definition in {file}")]


def check_blanks(use_case: UseCase) -> Iterator[Mistake]:
    """What the person who declares a use case has yet to say: the lines of `BLANKS` in its modules."""
    for package in ("features", "expectations"):
        if find_spec(f"{package}.{use_case.name}") is None:
            continue
        file = f"{package}/{use_case.name}.py"
        for blank in getattr(import_module(f"{package}.{use_case.name}"), "BLANKS", ()):
            yield in_file(file, blank, "is yet to be done", "what it says, and take the line out of BLANKS")


def check_suites(use_case: UseCase, declared: Mapping[str, Suite]) -> Iterator[Mistake]:
    """Each table of the block has a suite with its columns, and each expectation is about one of them."""
    file, tables = f"expectations/{use_case.name}.py", use_case.source.tables
    for name in sorted(tables.keys() - declared.keys()):
        yield in_file(file, name, "a table of params.yaml that no suite is about", f"a suite {name!r} in SUITES")
    for name in sorted(declared.keys() - tables.keys()):
        yield in_params("source.tables", f"lacks {name!r}, which {file} has a suite for", f"a table {name!r} here")
    for name in sorted(declared.keys() & tables.keys()):
        table, suite = tables[name], declared[name]
        for column in table.key:
            if (problem := _find_problem(suite, column)) is not None:
                yield in_params(
                    f"source.tables.{name}.key", f"{column!r} {problem} in {file}", "columns that always have a value"
                )
        if (problem := _find_problem(suite, table.available_at, "timestamp")) is not None:
            yield in_params(
                f"source.tables.{name}.available_at",
                f"{table.available_at!r} {problem} in {file}",
                "a column of kind timestamp that always has a value: when the row became known",
            )
        yield from _check_expectations(file, name, suite)


def _find_problem(suite: Suite, column: str, kind: str | None = None) -> str | None:
    if column not in suite.columns:
        return "is no column"
    if kind is not None and suite.columns[column].kind != kind:
        return f"is of kind {suite.columns[column].kind}"
    return "may be null" if suite.columns[column].nullable else None


def _check_expectations(file: str, table: str, suite: Suite) -> Iterator[Mistake]:
    for column in suite.plausible_hours:
        if column not in suite.columns or suite.columns[column].kind != "timestamp":
            yield in_file(
                file, column, f"plausible_hours of {table} has no such column of kind timestamp", "one that is"
            )
    for expect in suite.expects:
        named = [expect.arguments[name] for name in ("column", "column_A", "column_B") if name in expect.arguments]
        named += [*expect.arguments.get("column_list", ()), *expect.arguments.get("column_set", ())]
        for column in named:
            if column not in suite.columns:
                yield in_file(
                    file,
                    column,
                    f"{expect.expectation} of {table} is about a column that it does not declare",
                    f"one of {', '.join(suite.columns)}",
                )


def check_definition(use_case: UseCase, definition: FeatureSet, declared: Mapping[str, Suite]) -> Iterator[Mistake]:
    """The definition reads what there is, names what is free, and compiles for every engine."""
    file = f"features/{use_case.name}.py"
    sources = [*_check_sources(file, definition, declared)]
    yield from sources
    yield from _check_names(file, use_case, definition)
    yield from _check_steadiness(file, definition)
    if not sources:
        yield from _check_engines(file, use_case, definition)


def _check_sources(file: str, definition: FeatureSet, declared: Mapping[str, Suite]) -> Iterator[Mistake]:
    for name, source in definition.sources.items():
        if name not in declared:
            yield in_file(file, name, "a source that no suite is about", f"one of {', '.join(declared)}")
            continue
        for column, kind in source.columns.items():
            has = declared[name].columns.get(column)
            if has is None:
                yield in_file(
                    file, column, f"{name}.{column} is not declared in its suite", "a column of the suite, or add it"
                )
            elif kind not in _KINDS[has.kind]:
                yield in_file(
                    file,
                    column,
                    f"{name}.{column} is read as {kind}, and is of kind {has.kind} in its suite",
                    " or ".join(f"{known}={column!r}" for known in _KINDS[has.kind]),
                )


def _check_names(file: str, use_case: UseCase, definition: FeatureSet) -> Iterator[Mistake]:
    names = [*definition.numeric, *definition.categorical]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield in_file(file, name, "numeric and categorical at once", "two names")
    for name in sorted(_TAKEN & {*names}):
        yield in_file(file, name, "a feature of a name that the tables of points and scores need", "another name")
    prefixes = [*(window.prefix for window in definition.windows), *(joined.prefix for joined in definition.joined)]
    for prefix in sorted({prefix for prefix in prefixes if prefixes.count(prefix) > 1}):
        yield in_file(file, prefix, "two windows of one prefix: their columns would be one another's", "two prefixes")
    columns = [name for window in definition.windows for name in column_names(window)]
    for name in sorted({name for name in columns if columns.count(name) > 1}):
        yield in_file(file, name, "two columns of one window have this name", "another name of a column in its stream")
    for name in KEY_COLUMNS:
        if name not in definition.point_sql:
            yield in_file(file, name, "a point has no such column", f"{name!r} among the columns of a point")
    for key, chosen, kind, known in (
        ("gate.slices", use_case.gate.slices, "categorical", definition.categorical),
        ("monitor.structural_features", use_case.monitor.structural_features, "", (*names,)),
    ):
        for name in chosen:
            if name not in known:
                yield in_params(
                    key, f"{name!r} is no {kind} feature of {file}".replace("  ", " "), f"of {', '.join(known)}"
                )


def _check_steadiness(file: str, definition: FeatureSet) -> Iterator[Mistake]:
    texts = {**definition.steps, **definition.point_sql, **definition.numeric_sql, **definition.categorical_sql}
    for name, sql in texts.items():
        for word in _UNSTEADY:
            if re.search(rf"\b{word}\b\s*(\(|$)" if not word.startswith("current") else rf"\b{word}\b", sql.lower()):
                yield in_file(
                    file,
                    name,
                    f"{word} gives something else each time: a partition that is made again would differ",
                    "what the rows say, {start}, {end} or {lead}",
                )


def _check_engines(file: str, use_case: UseCase, definition: FeatureSet) -> Iterator[Mistake]:
    lead = use_case.time.lead
    try:
        with run_steps(definition, {}, ANY_DAY, lead) as connection:
            yield from _check_streams(file, definition, connection)
            for statement in compile_sql(definition, {}, ANY_DAY, lead)[
                len(definition.sources) + len(definition.steps) :
            ]:
                connection.execute(statement)
    except (duckdb.Error, KeyError, IndexError) as error:
        yield in_file(file, definition.name, f"DuckDB refuses it: {_first_line(error)}", "SQL that DuckDB knows")
        return
    try:
        OnlineFeatures(definition, lead, cache_bytes=_CACHE_BYTES)
    except ValueError as error:
        yield in_file(
            file,
            str(error).partition(":")[0],
            f"{error}",
            "an expression that is answered online, or a step that makes it",
        )
    if use_case.engine == "spark":
        yield from _check_spark(definition, compile_sql(definition, {}, ANY_DAY, lead))


def _check_spark(definition: FeatureSet, statements: Iterable[str]) -> Iterator[Mistake]:
    if find_spec("sqlglot") is None:
        yield in_params("engine", "spark, and it is not installed", "duckdb, or install the extra `spark`")
        return
    from features.spark_sql import translate_to_spark  # of an extra

    for sql in statements:
        try:
            translate_to_spark(sql, definition)
        except ValueError as error:
            yield in_params("engine", f"spark: {error}", "duckdb, or an expression that Spark has")


def _check_streams(file: str, definition: FeatureSet, connection: duckdb.DuckDBPyConnection) -> Iterator[Mistake]:
    for window in definition.windows:
        kinds = {row[0]: row[1] for row in connection.execute(f"describe {window.stream}").fetchall()}
        for name in (*window.sums, *window.variances):
            what = "sum" if name in window.sums else "variance"
            if name in kinds and kinds[name] not in _WHOLE:
                yield in_file(
                    file,
                    name,
                    f"a {what} of {window.stream}.{name}, which is {kinds[name]}: only whole numbers add up to the same"
                    " in any order",
                    f"cast({name} as bigint), in the unit that is fine enough",
                )
    labels = {row[0]: row[1] for row in connection.execute("describe labels").fetchall()}
    for name in ("entity_key", "event_time", "label", "label_time"):
        if name not in labels:
            yield in_file(file, "labels", f"the step has no column {name}", "one that has")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
