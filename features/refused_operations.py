"""What expressions may not use though DuckDB has it, and what to write instead; and other names of what they may."""

from collections.abc import Mapping

ALIASES: Mapping[str, str] = {
    "pow": "power", "**": "power", "^": "power", "ceiling": "ceil", "substr": "substring", "len": "length", "mod": "%",
}  # fmt: skip
OTHER_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("int8", "long", "int64"), "bigint"),
    **dict.fromkeys(("int", "int4", "signed", "int32"), "integer"),
    **dict.fromkeys(("text", "string", "char", "bpchar"), "varchar"),
    **dict.fromkeys(("float8", "float64"), "double"),
    **dict.fromkeys(("bool", "logical"), "boolean"),
    **dict.fromkeys(("real", "float4", "float32"), "float"),
    "datetime": "timestamp",
}
_CLOCK = "features know a moment from data, never from the clock: write event_time or prediction_time"
_STEP = "make the value in a step, where DuckDB alone runs"
_NO_DATE = "there are no dates, only moments: write date_trunc('day', a)"
INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(
        ("now", "current_timestamp", "get_current_timestamp", "today", "current_date", "transaction_timestamp"), _CLOCK
    ),
    **dict.fromkeys(("random", "gen_random_uuid", "uuid"), "a feature says the same each time it is asked for"),
    **dict.fromkeys(
        ("regexp_matches", "regexp_full_match", "regexp_extract", "regexp_replace"),
        f"Python's expressions are not RE2's: write like, starts_with, contains or replace, or {_STEP}",
    ),
    **dict.fromkeys(
        ("sum", "avg", "count", "count_star", "min", "max", "stddev", "median"),
        "an expression sees one point: write a Window, or greatest and least of several values",
    ),
    **dict.fromkeys(("strftime", "strptime"), "write year(a), month(a), ..., or cast(a as varchar)"),
    **dict.fromkeys(("age", "datediff", "datesub"), "write date_diff('day', a, b), or date_sub for whole units"),
    **dict.fromkeys(("date_add", "datetrunc", "datepart"), "write a + interval 1 day, date_trunc or date_part"),
    **dict.fromkeys(("weekofyear", "yearweek", "isoyear"), "write week(a), which is ISO's"),
    **dict.fromkeys(("weekday", "dayofmonth"), "write dayofweek(a), from 0 on Sunday, or day(a)"),
    **dict.fromkeys(("lcase", "ucase"), "write lower(a) or upper(a)"),
    **dict.fromkeys(("ltrim", "rtrim"), "write trim(a)"),
    **dict.fromkeys(("prefix", "suffix", "^@"), "write starts_with(a, b) or ends_with(a, b)"),
    **dict.fromkeys(("instr", "strpos", "position"), "write contains(a, b)"),
    **dict.fromkeys(("md5", "hash", "sha256"), _STEP),
    "log": "write log10(a), or ln(a)",
    "log2": "write ln(a) / ln(2)",
    "cbrt": "write power(a, 1.0 / 3)",
    "to_timestamp": "write timestamp '1970-01-01' + interval 1 second, or declare the column as a timestamp",
    "epoch_ms": "write epoch(a)",
    "concat_ws": "write concat or ||",
    "like_escape": "write contains(a, b), or starts_with",
    "list_value": _STEP,
    "struct_pack": _STEP,
    "ARRAY_EXTRACT": "write substring(a, 1, 1)",
    "ARRAY_SLICE": "write substring(a, 1, 2)",
    "SUBQUERY": "an expression sees one point: write a lookup (AsOf), or a Window",
    "WINDOW_AGGREGATE": "an expression sees one point: write a Window",
    "STAR": "name each column",
    "LAMBDA": _STEP,
    "VALUE_PARAMETER": "write the value itself",
    "COLLATE": "write lower(a) = lower(b)",
    "OPERATOR_TRY": "what stops a batch is to be kept from it: write nullif(b, 0), greatest(a, 0), try_cast",
}
_ONE_KIND = "compare values of one kind: write cast(a as bigint), or timestamp '2013-01-01 10:00:00'"
INSTEAD_OF_KINDS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "COMPARE_EQUAL",
            "COMPARE_NOTEQUAL",
            "COMPARE_LESSTHAN",
            "COMPARE_GREATERTHAN",
            "COMPARE_LESSTHANOREQUALTO",
            "COMPARE_GREATERTHANOREQUALTO",
            "COMPARE_IN",
            "COMPARE_BETWEEN",
        ),
        _ONE_KIND,
    ),
    "//": "of doubles write floor(a / b)",
    "CAST date": _NO_DATE,
    "CAST time": "write hour(a), minute(a), second(a)",
    "CAST decimal": "a number with a point is a double: write cast(a as double)",
    "CAST numeric": "a number with a point is a double: write cast(a as double)",
    "CAST timestamptz": "moments are UTC without a zone: write timestamp '2013-01-01 10:00:00'",
    "CAST interval": "write interval 3 hours, a constant",
    "CAST float": "a feature is a number, or a text: of a span write epoch(a - b), of moments date_diff",
    "CAST bigint": "of a moment write epoch(a)",
    "CAST double": "of a moment or a span write epoch(a)",
    "+": "a span is a constant: write a + interval 3 hours; of moments and numbers write date_diff",
    "-": "of moments and numbers write date_diff",
    "~~": "a pattern is a constant without a backslash: write contains(a, b), or starts_with",
    "left": "how many letters is a constant, not below 0",
    "right": "how many letters is a constant, not below 0",
    "substring": "where it begins and how long it is are constants, not below 0",
    "round": "how many digits is a constant, not below 0",
    "date_part": "its unit is a constant out of docs/expressions.md; of a span write epoch(a - b)",
}
