"""What expressions of features may use: one table, from which the evaluator, the docs and the generated tests work."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from features.operation import (
    Operation,
    WriteText,
    all_of,
    among,
    any_of,
    bounded,
    call_with,
    choose,
    first_of,
    strict,
)
from features.operations import UNITS

KINDS = ("bigint", "double", "boolean", "varchar", "timestamp")
_LIBM = "Java's last bits are others"
_ASCII = "letters beyond ASCII differ"
_ONLY_DUCKDB = "not seen to give the same bits"
_BY_ZERO = "a divisor of 0"
_NO_EPOCH = "write date_diff('second', timestamp '1970-01-01', a)"
# NaN equals itself and is greater than every number, as DuckDB has it; `{0} != {0}` is true of nothing else.
_LESS = {"double": "{0} < {1} or ({1} != {1} and {0} == {0})"}
_EQUAL = {"double": "{0} == {1} or ({0} != {0} and {1} != {1})"}
_COMPARED = {
    "COMPARE_EQUAL": ("a = b", "{0} == {1}", _EQUAL["double"]),
    "COMPARE_NOTEQUAL": ("a <> b", "{0} != {1}", "{0} != {1} and ({0} == {0} or {1} == {1})"),
    "COMPARE_LESSTHAN": ("a < b", "{0} < {1}", _LESS["double"]),
    "COMPARE_GREATERTHAN": ("a > b", "{0} > {1}", "{0} > {1} or ({0} != {0} and {1} == {1})"),
    "COMPARE_LESSTHANOREQUALTO": ("a <= b", "{0} <= {1}", "{0} <= {1} or {1} != {1}"),
    "COMPARE_GREATERTHANOREQUALTO": ("a >= b", "{0} >= {1}", "{0} >= {1} or {0} != {0}"),
}
_IN_MONTHS = {
    "month": (1, "diff_months({}, {})"),
    "quarter": (3, "diff_quarters({}, {})"),
    "year": (12, "year({1}) - year({0})"),
}


def _op(
    sql: str, takes: str, gives: str, python: str | WriteText, *, name: str = "", repeated: bool = False,
    spark: str = "", stops: str = "",
) -> Operation:  # fmt: skip
    """A row; a text is null where any operand is. The name is that of the function where none is given."""
    write = strict(python) if isinstance(python, str) else python
    return Operation(
        name=name or sql.partition("(")[0], sql=sql, takes=tuple(takes.split()), gives=gives, python=write,
        is_repeated=repeated, not_on_spark=spark, stops=stops,
    )  # fmt: skip


def _of_each(kinds: Sequence[str], *rows: Operation) -> Iterator[Operation]:
    """Rows in which T stands for each of some kinds."""
    for row in rows:
        for kind in kinds:
            takes = tuple(kind if each == "T" else each for each in row.takes)
            fields = {**row.__dict__, "takes": takes, "gives": kind if row.gives == "T" else row.gives}
            yield Operation(**fields)


_NUMBERS = (
    *_of_each(
        ("bigint", "double"),
        _op("a + b", "T T", "T", "{} + {}", name="+"),
        _op("a - b", "T T", "T", "{} - {}", name="-"),
        _op("a * b", "T T", "T", "{} * {}", name="*"),
        _op("-a", "T", "T", "-{}", name="-"),
        _op("abs(a)", "T", "T", "abs({})"),
    ),
    _op("a / b", "double double", "double", "divide({}, {})", name="/"),
    _op("a // b", "bigint bigint", "bigint", "divide_whole({}, {})", name="//", spark=_ONLY_DUCKDB, stops=_BY_ZERO),
    _op("a % b", "bigint bigint", "bigint", "modulo_whole({}, {})", name="%", spark=_ONLY_DUCKDB, stops=_BY_ZERO),
    _op("a % b", "double double", "double", "modulo({}, {})", name="%", spark=_ONLY_DUCKDB),
    _op("round(a)", "bigint", "bigint", "{}".format, spark=_ONLY_DUCKDB),
    _op("round(a)", "double", "double", "round_half_away({})", spark="Spark rounds a decimal text"),
    _op("round(a, b)", "bigint whole", "bigint", "{0}", spark=_ONLY_DUCKDB),
    _op("round(a, b)", "double whole", "double", "round_to({}, {})", spark="Spark rounds a decimal text"),
    _op("floor(a)", "double", "double", "floor({})", spark="Spark makes a whole number of it"),
    _op("ceil(a)", "double", "double", "ceil({})", spark="Spark makes a whole number of it"),
    _op("trunc(a)", "bigint", "bigint", "{}".format, spark=_ONLY_DUCKDB),
    _op("trunc(a)", "double", "double", "truncate({})", spark=_ONLY_DUCKDB),
    _op("sign(a)", "bigint", "bigint", "sign_of({})", spark="Spark gives a double, NaN of NaN"),
    _op("sign(a)", "double", "bigint", "sign_of({})", spark="Spark gives a double, NaN of NaN"),
    _op("sqrt(a)", "double", "double", "root({})"),
    _op("ln(a)", "double", "double", "ln({})", spark=_LIBM),
    _op("log10(a)", "double", "double", "log10({})", spark=_LIBM),
    _op("exp(a)", "double", "double", "exp({})", spark=_LIBM),
    _op("power(a, b)", "double double", "double", "power({}, {})", spark=_LIBM),
    _op("isnan(a)", "double", "boolean", "{0} != {0}", spark="false there where a is missing"),
    _op("isinf(a)", "double", "boolean", "{} in (INFINITY, -INFINITY)", spark=_ONLY_DUCKDB),
    _op("isfinite(a)", "double", "boolean", "{0} - {0} == 0"),
)


def _compare(kinds: Sequence[str]) -> Iterator[Operation]:
    for kind in kinds:
        less, equal = _LESS.get(kind, "{0} < {1}"), _EQUAL.get(kind, "{0} == {1}")
        for name, (sql, text, of_doubles) in _COMPARED.items():
            yield _op(sql, f"{kind} {kind}", "boolean", of_doubles if kind == "double" else text, name=name)
        if kind != "timestamptz":
            yield _op("a between b and c", f"{kind} {kind} {kind}", "boolean", bounded(less), name="COMPARE_BETWEEN")
        if kind in KINDS:
            yield _op("a in (b, c)", f"{kind} {kind}", "boolean", among(equal), name="COMPARE_IN", repeated=True)
            yield _op(
                "a is distinct from b", f"{kind} {kind}", "boolean", f"not ({equal})".format,
                name="COMPARE_DISTINCT_FROM",
            )  # fmt: skip
            yield _op(
                "a is not distinct from b", f"{kind} {kind}", "boolean", equal.format,
                name="COMPARE_NOT_DISTINCT_FROM",
            )  # fmt: skip
            yield _op("nullif(a, b)", f"{kind} {kind}", kind, f"None if {equal} else {{0}}".format)


_LOGIC = (
    *_compare((*KINDS, "timestamptz", "interval")),
    _op(
        "nullif(a, b)",
        "bigint double",
        "bigint",
        "None if {0} is not None and {1} is not None and float({0}) == {1} else {0}".format,
    ),
    _op("a and b", "boolean boolean", "boolean", all_of, name="CONJUNCTION_AND", repeated=True),
    _op("a or b", "boolean boolean", "boolean", any_of, name="CONJUNCTION_OR", repeated=True),
    _op("not a", "boolean", "boolean", "not {}", name="OPERATOR_NOT"),
    *_of_each(
        (*KINDS, "timestamptz", "struct"),
        _op("a is null", "T", "boolean", "{} is None".format, name="OPERATOR_IS_NULL"),
        _op("a is not null", "T", "boolean", "{} is not None".format, name="OPERATOR_IS_NOT_NULL"),
    ),
    *_of_each(
        KINDS,
        _op("coalesce(a, b)", "T", "T", first_of, name="OPERATOR_COALESCE", repeated=True),
        _op("case when a then b else c end", "boolean T T", "T", choose, name="CASE", repeated=True),
        _op("greatest(a, b)", "T", "T", call_with("greatest"), repeated=True),
        _op("least(a, b)", "T", "T", call_with("least"), repeated=True),
    ),
)
_TEXTS = (
    _op("a || b", "varchar varchar", "varchar", "{} + {}", name="||"),
    _op("concat(a, b)", "varchar", "varchar", call_with("join"), repeated=True, spark="null there where any is null"),
    _op("lower(a)", "varchar", "varchar", "lower({})", spark=_ASCII),
    _op("upper(a)", "varchar", "varchar", "upper({})", spark=_ASCII),
    _op("trim(a)", "varchar", "varchar", "trim({})", spark="spaces beyond ASCII stay there"),
    _op("length(a)", "varchar", "bigint", "len({})"),
    _op("left(a, b)", "varchar whole", "varchar", "{}[:{}]"),
    _op("right(a, b)", "varchar whole", "varchar", "right({}, {})"),
    _op("substring(a, b, c)", "varchar whole whole", "varchar", "substring({}, {}, {})", spark="0 means 1 there"),
    _op("replace(a, b, c)", "varchar varchar varchar", "varchar", "{0}.replace({1}, {2}) if {1} else {0}"),
    _op("starts_with(a, b)", "varchar varchar", "boolean", "{}.startswith({})"),
    _op("ends_with(a, b)", "varchar varchar", "boolean", "{}.endswith({})"),
    _op("contains(a, b)", "varchar varchar", "boolean", "{1} in {0}"),
    _op("a like b", "varchar pattern", "boolean", "like({}, {})", name="~~"),
    _op("a not like b", "varchar pattern", "boolean", "not like({}, {})", name="!~~"),
    _op("a ilike b", "varchar pattern", "boolean", "like(lower({}), lower({}))", name="~~*", spark=_ASCII),
    _op("a not ilike b", "varchar pattern", "boolean", "not like(lower({}), lower({}))", name="!~~*", spark=_ASCII),
)
_PARTS: Mapping[str, str] = {
    "year": "", "quarter": "", "month": "", "day": "", "dayofyear": "", "hour": "", "minute": "", "second": "",
    "week": _ONLY_DUCKDB, "dayofweek": "Spark counts from 1", "isodow": _ONLY_DUCKDB,
}  # fmt: skip


def _of_units() -> Iterator[Operation]:
    for part, spark in _PARTS.items():
        yield _op(f"{part}(a)", "timestamp", "bigint", f"{part}({{}})", spark=spark)
        yield _op(f"date_part('{part}', a)", f"'{part}' timestamp", "bigint", f"{part}({{}})", spark=f"write {part}(a)")
    for unit, size in UNITS.items():
        sql = f"('{unit}', a, b)"
        takes = f"'{unit}' timestamp timestamp"
        yield _op(f"date_trunc('{unit}', a)", f"'{unit}' timestamp", "timestamp", f"{{}} // {size} * {size}")
        yield _op(f"date_diff{sql}", takes, "bigint", f"{{1}} // {size} - {{0}} // {size}")
        yield _op(f"date_sub{sql}", takes, "bigint", f"sub_units({{}}, {{}}, {size})", spark=_ONLY_DUCKDB)
    yield _op("date_trunc('week', a)", "'week' timestamp", "timestamp", "trunc_week({})")
    takes = "'week' timestamp timestamp"
    yield _op("date_diff('week', a, b)", takes, "bigint", "diff_weeks({}, {})", spark=_ONLY_DUCKDB)
    week = 7 * UNITS["day"]
    yield _op("date_sub('week', a, b)", takes, "bigint", f"sub_units({{}}, {{}}, {week})", spark=_ONLY_DUCKDB)
    for unit, (months, begun) in _IN_MONTHS.items():
        takes, end = f"'{unit}' timestamp timestamp", f"({{}}, {{}}, {months})"
        yield _op(f"date_trunc('{unit}', a)", f"'{unit}' timestamp", "timestamp", f"trunc_months({{}}, {months})")
        yield _op(f"date_diff('{unit}', a, b)", takes, "bigint", begun, spark=_ONLY_DUCKDB)
        yield _op(f"date_sub('{unit}', a, b)", takes, "bigint", f"sub_months{end}", spark=_ONLY_DUCKDB)


_MOMENTS = (
    *_of_units(),
    _op("dayname(a)", "timestamp", "varchar", "dayname({})"),
    _op("monthname(a)", "timestamp", "varchar", "monthname({})", spark=_ONLY_DUCKDB),
    _op("epoch(a)", "timestamp", "double", "epoch({})", spark=_NO_EPOCH),
    _op("epoch(a)", "interval", "double", "span_seconds({})", spark=_NO_EPOCH),
    _op("date_part('epoch', a)", "'epoch' timestamp", "double", "epoch({})", spark=_NO_EPOCH),
    _op("date_part('epoch', a)", "'epoch' interval", "double", "span_seconds({})", spark=_NO_EPOCH),
    _op("a + interval 1 hour", "timestamp interval", "timestamp", "{} + {}", name="+"),
    _op("a - interval 1 hour", "timestamp interval", "timestamp", "{} - {}", name="-"),
    _op("a + interval 1 month", "timestamp months", "timestamp", "add_months({0}, {1}[0], {1}[1])", name="+"),
    _op("a - interval 1 month", "timestamp months", "timestamp", "add_months({0}, -{1}[0], -{1}[1])", name="-"),
    _op("a - b", "timestamp timestamp", "interval", "{} - {}", name="-", spark=_ONLY_DUCKDB),
    _op("timezone('UTC', a)", "'utc' timestamp", "timestamptz", "{}".format),
    _op("timezone(a, b)", "varchar timestamptz", "timestamp", "local_clock({}, {})", stops="a zone that there is not"),
)


def _cast(taken: str, given: str, python: str | WriteText, *, spark: str = "", stops: str = "") -> Operation:
    return _op(
        f"cast(a as {given})", taken, "bigint" if given == "integer" else given, python, name=f"CAST {given}",
        spark=spark, stops=stops,
    )  # fmt: skip


_OTHER_TEXT, _NO_SUCH = "its text is another", "what is not one"
_CASTS = (
    _cast("bigint", "double", "float({})"),
    _cast("boolean", "double", "float({})"),
    _cast("varchar", "double", "double_of({})", spark=_OTHER_TEXT, stops=_NO_SUCH),
    _cast("boolean", "bigint", "int({})"),
    _cast("double", "bigint", "to_whole({})", spark="Spark cuts off", stops="what 64 bits do not hold"),
    _cast("varchar", "bigint", "whole_of({})", spark=_OTHER_TEXT, stops=_NO_SUCH),
    _cast("bigint", "integer", "{0} if -2147483648 <= {0} <= 2147483647 else None", stops="what 32 bits do not hold"),
    _cast("boolean", "integer", "int({})"),
    _cast("double", "integer", "to_integer({})", spark="Spark cuts off", stops="what 32 bits do not hold"),
    _cast("varchar", "integer", "integer_of({})", spark=_OTHER_TEXT, stops=_NO_SUCH),
    _cast("bigint", "boolean", "{} != 0"),
    _cast("double", "boolean", "{} != 0"),
    _cast("varchar", "boolean", "boolean_of({})", spark=_OTHER_TEXT, stops=_NO_SUCH),
    _cast("bigint", "varchar", "str({})"),
    _cast("double", "varchar", "double_text({})", spark=_OTHER_TEXT),
    _cast("boolean", "varchar", "'true' if {} else 'false'"),
    _cast("timestamp", "varchar", "moment_text({})", spark=_OTHER_TEXT),
    _cast("varchar", "timestamp", "moment_of({})", spark=_OTHER_TEXT, stops=_NO_SUCH),
    _cast("double", "float", "{}".format, stops="a number that is too great for 32 bits"),
    _cast("boolean", "float", "float({})"),
    _cast("bigint", "float", "float({0}) if -9007199254740992 <= {0} <= 9007199254740992 else single({0})"),
)

OPERATIONS = (*_NUMBERS, *_LOGIC, *_TEXTS, *_MOMENTS, *_CASTS)


def by_name(rows: Iterable[Operation]) -> Mapping[str, tuple[Operation, ...]]:
    """Rows under their names, in their order."""
    found: dict[str, tuple[Operation, ...]] = {}
    for row in rows:
        found[row.name] = (*found.get(row.name, ()), row)
    return found
