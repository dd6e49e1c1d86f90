"""The expressions of a feature definition, evaluated event by event: the same SQL text, without an engine's cost.

DuckDB needs ten milliseconds to plan and start fifty expressions, whatever the number of rows, and arrays of numpy
half a millisecond; plain Python needs a tenth of one. DuckDB parses the text; here its tree becomes one Python
function, in which each distinct operation is a line. An operation that is not written here is refused when expressions
are compiled, never guessed: tests hold both evaluators to the same bits.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb

from features import operations as op
from features.expression_text import WriteText, all_of, any_of, choose, first_of, strict

_COMPARISONS = {
    "COMPARE_EQUAL": "==",
    "COMPARE_NOTEQUAL": "!=",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_LESSTHANOREQUALTO": "<=",
}
_NUMBERS = ("bigint", "double")
_FUNCTIONS = {each.__name__: each for each in op.FUNCTIONS}


class _Operand(NamedTuple):
    place: int
    kind: str  # bigint | double | float | decimal (a literal) | boolean | varchar | timestamp(tz) | struct | null


@dataclass(frozen=True)
class CompiledExpressions:
    """Named expressions, ready to be run: `run` takes the values of an event by name, None where one is missing.

    It gives the expressions' values in their order. A moment is microseconds since 1970, in UTC or a local clock, and a
    number to be rounded to 32 bits (`float` in `kinds`) is not rounded yet.
    """

    inputs: tuple[str, ...]
    kinds: Mapping[str, str]
    run: Callable[[Mapping[str, Any]], tuple[Any, ...]]


def compile_expressions(expressions: Mapping[str, str], kinds: Mapping[str, str]) -> CompiledExpressions:
    """A program for SQL expressions over typed columns ("leg", or a field "leg.origin").

    Raises:
        ValueError: an expression uses what is not supported here, or a column that there is not.
    """
    compiler = _Compiler(kinds)
    nodes = {}
    with duckdb.connect() as connection:
        for name, sql in expressions.items():
            try:
                nodes[name] = compiler.node(_parse(connection, sql))
            except ValueError as error:
                raise ValueError(f"{name}: {error} in {sql!r}: it cannot be answered online") from error
    return compiler.program(nodes)


def _parse(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    parsed = json.loads(connection.execute("select json_serialize_sql(?)", [f"select {sql}"]).fetchall()[0][0])
    if parsed.get("error"):
        raise ValueError(parsed["error_message"])
    [expression] = parsed["statements"][0]["node"]["select_list"]
    return dict(expression)


class _Compiler:
    """Turns trees into operations; an operation on the same operands is done once."""

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self._kinds = kinds
        self._known: dict[Any, _Operand] = {}
        self._inputs: dict[_Operand, str] = {}
        self._constants: dict[_Operand, Any] = {}
        self._lines: dict[_Operand, str] = {}
        self._makers = {
            "COLUMN_REF": self._column,
            "CONSTANT": self._literal,
            "FUNCTION": self._function,
            "COMPARISON": self._comparison,
            "CASE": self._case,
            "CAST": self._cast,
            "CONJUNCTION": self._conjunction,
            "OPERATOR": self._operator,
        }

    def node(self, tree: dict[str, Any]) -> _Operand:
        if (maker := self._makers.get(tree["class"])) is None:
            raise ValueError(f"unsupported {tree['type']}")
        return maker(tree)

    def program(self, nodes: Mapping[str, _Operand]) -> CompiledExpressions:
        """A function of what is written here: names and values of others are in it as constants alone."""
        lines = [
            "def run(row):",
            *(f"v{made.place} = row[{name!r}]" for made, name in self._inputs.items()),
            *(f"v{made.place} = {text}" for made, text in self._lines.items()),
            f"return ({''.join(f'v{node.place}, ' for node in nodes.values())})",
        ]
        names = _FUNCTIONS | {f"v{made.place}": value for made, value in self._constants.items()}
        exec("\n    ".join(lines), names)  # noqa: S102
        kinds = {name: node.kind for name, node in nodes.items()}
        return CompiledExpressions(tuple(self._inputs.values()), kinds, names["run"])

    def _new(self, key: Any, kind: str) -> _Operand:
        return self._known.setdefault(key, _Operand(len(self._known), kind))

    def _apply(self, key: Any, kind: str, write: WriteText, *nodes: _Operand) -> _Operand:
        made = self._new((key, *(n.place for n in nodes)), kind)
        self._lines.setdefault(made, write(*(f"v{n.place}" for n in nodes)))
        return made

    def _column(self, tree: dict[str, Any]) -> _Operand:
        name = ".".join(tree["column_names"])
        if name not in self._kinds:
            raise ValueError(f"unknown column {name}")
        made = self._new(("column", name), self._kinds[name])
        self._inputs[made] = name
        return made

    def _constant(self, value: Any, kind: str) -> _Operand:
        made = self._new(("constant", kind, value), kind)
        self._constants[made] = value
        return made

    def _literal(self, tree: dict[str, Any]) -> _Operand:
        literal = tree.get("literal") or {}
        kind, text = literal.get("kind"), literal.get("text")
        match kind:
            case "INTEGER":
                return self._constant(int(str(text)), "bigint")
            case "STRING":
                return self._constant(text, "varchar")
            case "NULL_LITERAL":
                return self._constant(None, "null")
            case "NUMERIC":
                return self._constant(float(str(text)), "decimal")
        raise ValueError(f"unsupported literal {text}")

    def _function(self, tree: dict[str, Any]) -> _Operand:
        name = tree["function_name"]
        nodes = [self.node(argument["expression"]) for argument in tree["arguments"]]
        kinds = [n.kind for n in nodes]
        match name:
            case "+" | "-" | "*" if len(nodes) == 2:
                kind = self._number(kinds)
                if "decimal" in kinds and "double" not in kinds:
                    raise ValueError(f"unsupported {name} of whole numbers and a decimal")
                text = f"{{}} {name} {{}}" if kind == "double" else f"wrap({{}} {name} {{}})"
                return self._apply(name, kind, strict(text), *self._as(kind, nodes))
            case "/":
                self._number(kinds)
                return self._apply(name, "double", strict("divide({}, {})"), *self._as("double", nodes))
            case "nullif":
                self._typed(name, kinds)
                compared = self._as(self._common(kinds), nodes)
                return self._apply(name, kinds[0], "None if {1} == {2} else {0}".format, nodes[0], *compared)
            case "greatest" | "least":
                kind = self._common(kinds)
                write = f"{name}({', '.join(['{}'] * len(nodes))})".format
                return self._apply(name, kind, write, *self._as(kind, nodes))
            case "||":
                return self._apply(name, "varchar", strict("{} + {}"), *(self._text(n) for n in nodes))
        return self._moment(name, nodes)

    def _moment(self, name: str, nodes: Sequence[_Operand]) -> _Operand:
        kinds = [n.kind for n in nodes]
        fixed = self._constants.get(nodes[0]) if nodes else None
        unit = op.UNITS.get(fixed) if isinstance(fixed, str) else None
        match name, kinds:
            case "hour" | "minute" | "year" | "dayname", ["timestamp"]:
                return self._apply(name, "varchar" if name == "dayname" else "bigint", strict(f"{name}({{}})"), *nodes)
            case "timezone", ["varchar", "timestamptz"]:
                return self._apply(name, "timestamp", strict("local_clock({}, {})"), *nodes)
            case "timezone", ["varchar", "timestamp"] if fixed == "UTC":
                return self._apply("utc", "timestamptz", "{}".format, nodes[1])
            case "date_trunc", [_, "timestamp"] if unit:
                return self._apply((name, unit), "timestamp", strict(f"{{}} // {unit} * {unit}"), nodes[1])
            case "date_diff", [_, "timestamp", "timestamp"] if unit:
                return self._apply((name, unit), "bigint", strict(f"{{1}} // {unit} - {{0}} // {unit}"), *nodes[1:])
        raise ValueError(f"unsupported {name}({', '.join(kinds)})")

    def _comparison(self, tree: dict[str, Any]) -> _Operand:
        nodes = [self.node(tree["left"]), self.node(tree["right"])]
        self._typed(tree["type"], [n.kind for n in nodes])
        kind = self._common([n.kind for n in nodes])
        if kind == "varchar" and tree["type"] not in ("COMPARE_EQUAL", "COMPARE_NOTEQUAL"):
            raise ValueError(f"unsupported {tree['type']} of varchar")
        text = f"{{}} {_COMPARISONS[tree['type']]} {{}}"
        return self._apply(tree["type"], "boolean", strict(text), *self._as(kind, nodes))

    def _case(self, tree: dict[str, Any]) -> _Operand:
        checks = [(self.node(c["when_expr"]), self.node(c["then_expr"])) for c in tree["case_checks"]]
        values = [then for _, then in checks] + [self.node(tree["else_expr"])]
        kind = self._common([v.kind for v in values])
        values = self._as(kind, values)
        self._booleans("case when", [when for when, _ in checks])
        return self._apply("case", kind, choose, *(when for when, _ in checks), *values)

    def _cast(self, tree: dict[str, Any]) -> _Operand:
        child, target = self.node(tree["child"]), str(tree["type_expr"]["type_name"]).lower()
        if target == child.kind:
            return child
        if child.kind == "null" and target in ("varchar", *_NUMBERS):
            return self._constant(None, target)
        if target == "varchar":
            return self._text(child)
        sources = ("boolean",) if target == "bigint" else ("boolean", "decimal", *_NUMBERS)
        if target in ("float", *_NUMBERS) and child.kind in sources:
            convert = "int({})" if target == "bigint" else "float({})"
            if (child.kind, target) == ("bigint", "float"):
                convert = "round_whole({})"
            return self._apply(("cast", target), target, strict(convert), child)
        raise ValueError(f"unsupported cast of {child.kind} to {target}")

    def _conjunction(self, tree: dict[str, Any]) -> _Operand:
        nodes = [self.node(child) for child in tree["children"]]
        self._booleans(tree["type"], nodes)
        return self._apply(tree["type"], "boolean", all_of if tree["type"] == "CONJUNCTION_AND" else any_of, *nodes)

    def _operator(self, tree: dict[str, Any]) -> _Operand:
        nodes = [self.node(child) for child in tree["children"]]
        match tree["type"]:
            case "OPERATOR_COALESCE":
                kind = self._common([n.kind for n in nodes])
                return self._apply("coalesce", kind, first_of, *self._as(kind, nodes))
            case "OPERATOR_IS_NULL":
                return self._apply("is null", "boolean", "{} is None".format, *nodes)
            case "OPERATOR_IS_NOT_NULL":
                return self._apply("is not null", "boolean", "{} is not None".format, *nodes)
            case "OPERATOR_NOT":
                self._booleans("not", nodes)
                return self._apply("not", "boolean", strict("not {}"), *nodes)
        raise ValueError(f"unsupported {tree['type']}")

    def _text(self, node: _Operand) -> _Operand:
        match node.kind:
            case "varchar":
                return node
            case "bigint":
                return self._apply("text", "varchar", strict("str({})"), node)
        raise ValueError(f"unsupported text of {node.kind}")

    def _as(self, kind: str, nodes: Sequence[_Operand]) -> list[_Operand]:
        """Nodes of a kind: a null takes it, so that arrays never hold what no operation expects."""
        typed = [self._constant(None, kind) if node.kind == "null" else node for node in nodes]
        return [self._double(node) if kind == "double" and node.kind != "double" else node for node in typed]

    def _typed(self, name: str, kinds: Sequence[str]) -> None:
        if "null" in kinds:
            raise ValueError(f"unsupported {name} of a null without a type")
        if "float" in kinds:  # rounded only when it is handed on
            raise ValueError(f"unsupported {name} of float")

    def _booleans(self, name: str, nodes: Sequence[_Operand]) -> None:
        if other := {node.kind for node in nodes} - {"boolean"}:
            raise ValueError(f"unsupported {name} of {', '.join(sorted(other))}")

    def _double(self, node: _Operand) -> _Operand:
        if (fixed := self._constants.get(node)) is not None:
            return self._constant(float(fixed), "double")
        return self._apply(("cast", "double"), "double", strict("float({})"), node)

    def _number(self, kinds: Sequence[str]) -> str:
        if not set(kinds) <= {*_NUMBERS, "decimal"}:
            raise ValueError(f"unsupported arithmetic of {', '.join(kinds)}")
        return "bigint" if set(kinds) == {"bigint"} else "double"

    def _common(self, kinds: Sequence[str]) -> str:
        distinct = set(kinds) - {"null"}
        if "struct" in distinct:
            raise ValueError("unsupported use of a whole record")
        if distinct <= {*_NUMBERS, "decimal"}:
            if "decimal" in distinct and "double" not in distinct:
                raise ValueError("unsupported mix of whole numbers and decimals")
            return self._number(sorted(distinct)) if distinct else "null"
        if len(distinct) > 1:
            raise ValueError(f"unsupported mix of {', '.join(sorted(distinct))}")
        return distinct.pop()
