"""The expressions of a feature definition, evaluated on a handful of rows: the same SQL text, without an engine's cost.

DuckDB needs ten milliseconds to plan and start fifty expressions, whatever the number of rows; numpy needs a fraction
of one. DuckDB parses the text; here its tree becomes a list of array operations, each distinct one once. An operation
that is not written here is refused when expressions are compiled, never guessed: tests hold both evaluators to the same
bits.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

from features import operations as op
from features.operations import MaskedColumn

Array = NDArray[Any]
_COMPARISONS = {
    "COMPARE_EQUAL": np.equal,
    "COMPARE_NOTEQUAL": np.not_equal,
    "COMPARE_GREATERTHAN": np.greater,
    "COMPARE_LESSTHAN": np.less,
    "COMPARE_GREATERTHANOREQUALTO": np.greater_equal,
    "COMPARE_LESSTHANOREQUALTO": np.less_equal,
}
_ARITHMETIC = {"+": np.add, "-": np.subtract, "*": np.multiply}
_NUMBERS = ("bigint", "double")


class _Operand(NamedTuple):
    place: int
    kind: str  # bigint | double | decimal (a literal) | boolean | varchar | timestamp | timestamptz | struct | null


@dataclass(frozen=True)
class CompiledExpressions:
    """Named expressions, ready to be run."""

    inputs: tuple[tuple[str, int], ...]
    constants: tuple[tuple[Any, str], ...]
    operations: tuple[tuple[Callable[..., MaskedColumn], tuple[int, ...]], ...]
    outputs: Mapping[str, int]
    kinds: Mapping[str, str]

    def run(self, columns: Mapping[str, MaskedColumn], rows: int) -> dict[str, MaskedColumn]:
        """The value of every expression for each row."""
        values = [*(columns[name] for name, _ in self.inputs), *_constants(self.constants, rows)]
        with np.errstate(all="ignore"):  # what lies under a null may be anything
            for function, places in self.operations:
                values.append(function(*[values[place] for place in places]))
        return {name: values[place] for name, place in self.outputs.items()}


@lru_cache(maxsize=1024)  # by value and type: 1 and 1.0 are the same to a cache
def _constants(values: tuple[tuple[Any, str], ...], rows: int) -> list[MaskedColumn]:
    return [op.missing_column(rows, kind) if value is None else op.repeat_value(value, rows) for value, kind in values]


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
        self._operations: dict[_Operand, tuple[Callable[..., MaskedColumn], tuple[int, ...]]] = {}
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
        """Places are given in the order of a run: inputs, constants, operations."""
        place = {n.place: number for number, n in enumerate([*self._inputs, *self._constants, *self._operations])}
        return CompiledExpressions(
            inputs=tuple((name, place[n.place]) for n, name in self._inputs.items()),
            constants=tuple((value, n.kind) for n, value in self._constants.items()),
            operations=tuple((f, tuple(place[p] for p in places)) for f, places in self._operations.values()),
            outputs={name: place[node.place] for name, node in nodes.items()},
            kinds={name: node.kind for name, node in nodes.items()},
        )

    def _new(self, key: Any, kind: str) -> _Operand:
        return self._known.setdefault(key, _Operand(len(self._known), kind))

    def _apply(self, key: Any, kind: str, function: Callable[..., MaskedColumn], *nodes: _Operand) -> _Operand:
        places = tuple(n.place for n in nodes)
        made = self._new((key, *places), kind)
        self._operations.setdefault(made, (function, places))
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
                return self._apply(name, kind, op.arithmetic(_ARITHMETIC[name]), *self._as(kind, nodes))
            case "/":
                self._number(kinds)
                return self._apply(name, "double", op.arithmetic(np.divide), *self._as("double", nodes))
            case "nullif":
                self._typed(name, kinds)
                self._common(kinds)
                return self._apply(name, kinds[0], op.nullif, *nodes)
            case "greatest" | "least":
                kind = self._common(kinds)
                choose = op.extreme(np.maximum if name == "greatest" else np.minimum)
                return self._apply(name, kind, choose, *self._as(kind, nodes))
            case "||":
                return self._apply(name, "varchar", op.concatenate, *(self._text(n) for n in nodes))
        return self._moment(name, nodes)

    def _moment(self, name: str, nodes: Sequence[_Operand]) -> _Operand:
        kinds = [n.kind for n in nodes]
        fixed = self._constants.get(nodes[0]) if nodes else None
        match name, kinds:
            case _, ["timestamp"] if name in op.PARTS:
                return self._apply(name, "varchar" if name == "dayname" else "bigint", op.PARTS[name], *nodes)
            case "timezone", ["varchar", "timestamptz"]:
                return self._apply(name, "timestamp", op.local_clock, *nodes)
            case "timezone", ["varchar", "timestamp"] if fixed == "UTC":
                return self._apply("utc", "timestamptz", op.identity, nodes[1])
            case "date_trunc", [_, "timestamp"] if fixed in op.UNITS:
                return self._apply((name, fixed), "timestamp", op.truncate(op.UNITS[fixed]), nodes[1])
            case "date_diff", [_, "timestamp", "timestamp"] if fixed in op.UNITS:
                return self._apply((name, fixed), "bigint", op.difference(op.UNITS[fixed]), *nodes[1:])
        raise ValueError(f"unsupported {name}({', '.join(kinds)})")

    def _comparison(self, tree: dict[str, Any]) -> _Operand:
        nodes = [self.node(tree["left"]), self.node(tree["right"])]
        self._typed(tree["type"], [n.kind for n in nodes])
        if self._common([n.kind for n in nodes]) == "varchar" and tree["type"] not in (
            "COMPARE_EQUAL",
            "COMPARE_NOTEQUAL",
        ):
            raise ValueError(f"unsupported {tree['type']} of varchar")
        return self._apply(tree["type"], "boolean", op.arithmetic(_COMPARISONS[tree["type"]]), *nodes)

    def _case(self, tree: dict[str, Any]) -> _Operand:
        checks = [(self.node(c["when_expr"]), self.node(c["then_expr"])) for c in tree["case_checks"]]
        values = [then for _, then in checks] + [self.node(tree["else_expr"])]
        kind = self._common([v.kind for v in values])
        values = self._as(kind, values)
        self._booleans("case when", [when for when, _ in checks])
        return self._apply("case", kind, op.case, *(when for when, _ in checks), *values)

    def _cast(self, tree: dict[str, Any]) -> _Operand:
        child, target = self.node(tree["child"]), str(tree["type_expr"]["type_name"]).lower()
        if target == child.kind:
            return child
        if child.kind == "null" and target in ("varchar", *_NUMBERS):
            return self._constant(None, target)
        if target == "varchar":
            return self._text(child)
        sources = ("boolean",) if target == "bigint" else ("boolean", "decimal", *_NUMBERS)
        if target in op.NUMBER_TYPES and child.kind in sources:
            return self._apply(("cast", target), "double" if target == "float" else target, op.cast(target), child)
        raise ValueError(f"unsupported cast of {child.kind} to {target}")

    def _conjunction(self, tree: dict[str, Any]) -> _Operand:
        nodes = [self.node(child) for child in tree["children"]]
        self._booleans(tree["type"], nodes)
        return self._apply(tree["type"], "boolean", op.conjunction(every=tree["type"] == "CONJUNCTION_AND"), *nodes)

    def _operator(self, tree: dict[str, Any]) -> _Operand:
        nodes = [self.node(child) for child in tree["children"]]
        match tree["type"]:
            case "OPERATOR_COALESCE":
                kind = self._common([n.kind for n in nodes])
                return self._apply("coalesce", kind, op.coalesce, *self._as(kind, nodes))
            case "OPERATOR_IS_NULL":
                return self._apply("is null", "boolean", op.is_null, *nodes)
            case "OPERATOR_IS_NOT_NULL":
                return self._apply("is not null", "boolean", op.is_not_null, *nodes)
            case "OPERATOR_NOT":
                self._booleans("not", nodes)
                return self._apply("not", "boolean", op.negation, *nodes)
        raise ValueError(f"unsupported {tree['type']}")

    def _text(self, node: _Operand) -> _Operand:
        match node.kind:
            case "varchar":
                return node
            case "bigint":
                return self._apply("text", "varchar", op.as_text, node)
        raise ValueError(f"unsupported text of {node.kind}")

    def _as(self, kind: str, nodes: Sequence[_Operand]) -> list[_Operand]:
        """Nodes of a kind: a null takes it, so that arrays never hold what no operation expects."""
        typed = [self._constant(None, kind) if node.kind == "null" else node for node in nodes]
        return [self._double(node) if kind == "double" and node.kind != "double" else node for node in typed]

    def _typed(self, name: str, kinds: Sequence[str]) -> None:
        if "null" in kinds:
            raise ValueError(f"unsupported {name} of a null without a type")

    def _booleans(self, name: str, nodes: Sequence[_Operand]) -> None:
        if other := {node.kind for node in nodes} - {"boolean"}:
            raise ValueError(f"unsupported {name} of {', '.join(sorted(other))}")

    def _double(self, node: _Operand) -> _Operand:
        if (fixed := self._constants.get(node)) is not None:
            return self._constant(float(fixed), "double")
        return self._apply(("cast", "double"), "double", op.cast("double"), node)

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
