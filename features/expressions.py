"""The expressions of a feature definition, evaluated event by event: the same SQL text, without an engine's cost.

DuckDB needs ten milliseconds to plan and start fifty expressions, whatever the number of rows, and arrays of numpy
half a millisecond; plain Python needs a tenth of one. DuckDB parses the text; here its tree becomes one Python
function, in which each distinct operation is a line. What `features.operation_table` does not have is refused when
expressions are compiled, never guessed: tests hold both evaluators to the same bits.

Whole numbers have no bounds on their way: where DuckDB has a value it is this one, and where it stops a batch, because
64 bits did not hold one, there is still a defined one. A result beyond 64 bits is missing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb

from features import numbers_and_text, operations
from features.expression_tree import has_columns, parse_expression, read_span
from features.operation import Operation
from features.operation_table import OPERATIONS, by_name
from features.operations import moment_of
from features.refused_operations import ALIASES, INSTEAD, INSTEAD_OF_KINDS, OTHER_TYPES

_ROWS = by_name(OPERATIONS)
_FUNCTIONS = {each.__name__: each for each in (*operations.FUNCTIONS, *numbers_and_text.FUNCTIONS)}
_TAKE_NULLS = ("OPERATOR_COALESCE", "CASE", "greatest", "least")
_SPANS = ("to_microseconds", "to_milliseconds", "to_seconds", "to_minutes", "to_hours", "to_days", "to_weeks",
          "to_months", "to_quarters", "to_years")  # fmt: skip
_WIDEST_BITS = 900  # of a whole number on its way: a double holds what it is, nearly


class _Operand(NamedTuple):
    place: int
    kind: str  # of a column, or timestamptz | interval | months | float | struct | null


@dataclass(frozen=True)
class CompiledExpressions:
    """Named expressions, ready to be run: `run` takes the values of an event by name, None where one is missing.

    It gives the expressions' values in their order. A moment is microseconds since 1970, in UTC or a local clock, and a
    number to be rounded to 32 bits (`float` in `kinds`) is not rounded yet.
    """

    inputs: tuple[str, ...]
    kinds: Mapping[str, str]
    run: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    operations: frozenset[Operation]


def compile_expressions(expressions: Mapping[str, str], kinds: Mapping[str, str]) -> CompiledExpressions:
    """A program for SQL expressions over typed columns ("leg", or a field "leg.origin").

    Raises:
        ValueError: an expression uses what is not supported here, or a column that there is not.
    """
    nodes = {}
    with duckdb.connect() as connection:
        compiler = _Compiler(kinds, connection)
        for name, sql in expressions.items():
            try:
                nodes[name] = compiler.node(parse_expression(connection, sql))
            except ValueError as error:
                raise ValueError(f"{name}: {error} in {sql!r}: it cannot be answered online") from error
    return compiler.program(nodes)


class _Compiler:
    """Turns trees into operations; an operation on the same operands is done once."""

    def __init__(self, kinds: Mapping[str, str], connection: duckdb.DuckDBPyConnection) -> None:
        self._kinds, self._connection = kinds, connection
        self._known: dict[Any, _Operand] = {}
        self._inputs: dict[_Operand, str] = {}
        self._constants: dict[_Operand, Any] = {}
        self._lines: dict[_Operand, str] = {}
        self._bits: dict[_Operand, int] = {}
        self._used: set[Operation] = set()
        self._makers: dict[str, Callable[[dict[str, Any]], _Operand]] = {
            "COLUMN_REF": self._column,
            "CONSTANT": self._literal,
            "FUNCTION": self._function,
            "COMPARISON": lambda tree: self._apply(tree["type"], self._nodes([tree["left"], tree["right"]])),
            "BETWEEN": lambda tree: self._apply(tree["type"], self._nodes([tree[n] for n in _BETWEEN])),
            "CASE": self._case,
            "CAST": self._cast,
            "CONJUNCTION": lambda tree: self._apply(tree["type"], self._nodes(tree["children"])),
            "OPERATOR": lambda tree: self._apply(tree["type"], self._nodes(tree["children"])),
        }

    def node(self, tree: dict[str, Any]) -> _Operand:
        if (maker := self._makers.get(tree["class"])) is None:
            raise ValueError(_refusal(tree["type"], INSTEAD.get(tree["type"], INSTEAD.get(tree["class"], ""))))
        return maker(tree)

    def _nodes(self, trees: Sequence[dict[str, Any]]) -> list[_Operand]:
        return [self.node(tree) for tree in trees]

    def program(self, nodes: Mapping[str, _Operand]) -> CompiledExpressions:
        """A function of what is written here: names and values of others are in it as constants alone."""
        given = (
            f"fit(v{node.place})" if node.kind == "bigint" and self._size(node) > 64 else f"v{node.place}"
            for node in nodes.values()
        )
        lines = [
            "def run(row):",
            *(f"v{made.place} = row[{name!r}]" for made, name in self._inputs.items()),
            *(f"v{made.place} = {text}" for made, text in self._lines.items()),
            f"return ({''.join(f'{each}, ' for each in given)})",
        ]
        constants = {f"v{made.place}": value for made, value in self._constants.items()}
        names = {"INFINITY": math.inf, **_FUNCTIONS, **constants}
        exec("\n    ".join(lines), names)  # noqa: S102
        kinds = {name: node.kind for name, node in nodes.items()}
        return CompiledExpressions(tuple(self._inputs.values()), kinds, names["run"], frozenset(self._used))

    def _new(self, key: Any, kind: str) -> _Operand:
        return self._known.setdefault(key, _Operand(len(self._known), kind))

    def _apply(self, name: str, nodes: Sequence[_Operand]) -> _Operand:
        """The first operation of this name that takes nodes of these kinds; failing that, with numbers widened."""
        kinds = [node.kind for node in nodes]
        if name not in _ROWS:
            raise ValueError(_refusal(name, INSTEAD.get(name, "")))
        if "float" in kinds:  # rounded only when it is handed on
            raise ValueError(_refusal(f"{name} of float", "write cast(a as double)"))
        if "null" in kinds and name not in _TAKE_NULLS:
            raise ValueError(_refusal(f"{name} of a null without a type", "write cast(null as bigint), say"))
        for may_widen in (False, True):
            for row in _ROWS[name]:
                takes = row.kinds_of(len(nodes)) or ()
                fits = (self._fits(node, kind, may_widen=may_widen) for node, kind in zip(nodes, takes, strict=False))
                if takes and all(fits):
                    return self._write(row, nodes, takes)
        hint = f"it takes {' or '.join(_told(row) for row in _ROWS[name][:8])}"
        if name in INSTEAD_OF_KINDS:
            hint = f"{INSTEAD_OF_KINDS[name]}; {hint}"
        raise ValueError(_refusal(f"{name}({', '.join(kinds)})", hint))

    def _fits(self, node: _Operand, kind: str, *, may_widen: bool) -> bool:
        fixed = self._constants.get(node)
        if kind == "whole":
            return node.kind == "bigint" and fixed is not None and 0 <= fixed < 1 << 31
        if kind == "pattern":
            return node.kind == "varchar" and fixed is not None and "\\" not in fixed
        if kind.startswith("'"):
            return node.kind == "varchar" and fixed is not None and kind in (f"'{fixed}'", f"'{fixed.lower()}'")
        return node.kind == kind or (may_widen and (node.kind, kind) in _WIDER) or (may_widen and node.kind == "null")

    def _write(self, row: Operation, nodes: Sequence[_Operand], takes: Sequence[str]) -> _Operand:
        wanted = [(node, kind) for node, kind in zip(nodes, takes, strict=True) if not kind.startswith("'")]
        operands = [self._as(kind, node) for node, kind in wanted]
        made = self._new((row, *(n.place for n in operands)), row.gives)
        self._lines.setdefault(made, row.python(*(f"v{n.place}" for n in operands)))
        self._used.add(row)
        if made.kind == "bigint":
            sizes = [self._size(n) for n in operands if n.kind == "bigint"]
            grown = sum(sizes) if row.name == "*" else max(sizes, default=64) + (row.name in ("+", "-", "abs"))
            self._bits[made] = max(grown, 64)
            if grown > _WIDEST_BITS:
                raise ValueError(_refusal("product of so many whole numbers", "write cast(a as double)"))
        return made

    def _size(self, node: _Operand) -> int:
        return self._bits.get(node, 64)

    def _as(self, kind: str, node: _Operand) -> _Operand:
        """A node of a kind; a null takes it."""
        if node.kind == "null":
            return self._constant(None, kind)
        if kind != "double" or node.kind == "double":
            return node
        if (fixed := self._constants.get(node)) is not None:
            return self._constant(float(fixed), "double")
        return self._apply("CAST double", [node])

    def _column(self, tree: dict[str, Any]) -> _Operand:
        name = ".".join(tree["column_names"])
        if name not in self._kinds:
            raise ValueError(_refusal(name, INSTEAD[name]) if name in INSTEAD else f"unknown column {name}")
        made = self._new(("column", name), self._kinds[name])
        self._inputs[made] = name
        return made

    def _constant(self, value: Any, kind: str) -> _Operand:
        made = self._new(("constant", kind, repr(value)), kind)  # 0.0 is not -0.0
        self._constants[made] = value
        return made

    def _literal(self, tree: dict[str, Any]) -> _Operand:
        literal = tree.get("literal") or {}
        kind, text = literal.get("kind"), literal.get("text")
        match kind:
            case "INTEGER" if -(1 << 63) <= int(str(text)) < 1 << 63:
                return self._constant(int(str(text)), "bigint")
            case "STRING":
                return self._constant(text, "varchar")
            case "NULL_LITERAL":
                return self._constant(None, "null")
            case "NUMERIC":  # a double in every engine: features.engine writes it so
                return self._constant(float(str(text)), "double")
            case "BOOLEAN":
                return self._constant(str(text).lower() == "true", "boolean")
        raise ValueError(_refusal(f"literal {text}", "write a number of 64 bits, a text, true, false or null"))

    def _function(self, tree: dict[str, Any]) -> _Operand:
        name = ALIASES.get(tree["function_name"], tree["function_name"])
        if tree.get("distinct") or tree.get("filter") or (tree.get("order_bys") or {}).get("orders"):
            raise ValueError(_refusal(f"{name} over several rows", INSTEAD["sum"]))
        if name in _SPANS:
            return self._span(tree)
        nodes = self._nodes([argument["expression"] for argument in tree["arguments"]])
        if name in ("||", "concat"):
            nodes = [self._text(node) for node in nodes]
        if name == "if" and len(nodes) == 3:
            return self._choose(nodes[:1], nodes[1:])
        return self._apply(name, nodes)

    def _case(self, tree: dict[str, Any]) -> _Operand:
        conditions = self._nodes([check["when_expr"] for check in tree["case_checks"]])
        values = self._nodes([check["then_expr"] for check in tree["case_checks"]])
        return self._choose(conditions, [*values, self.node(tree["else_expr"])])

    def _choose(self, conditions: Sequence[_Operand], values: Sequence[_Operand]) -> _Operand:
        if other := {node.kind for node in conditions} - {"boolean"}:
            raise ValueError(_refusal(f"case when of {', '.join(sorted(other))}", "write a comparison: a > 0"))
        for may_widen in (False, True):
            for row in _ROWS["CASE"]:
                if all(self._fits(value, row.gives, may_widen=may_widen) for value in values):
                    return self._write(
                        row, [*conditions, *values], ["boolean"] * len(conditions) + [row.gives] * len(values)
                    )
        raise ValueError(_refusal(f"mix of {', '.join(value.kind for value in values)}", "cast them to one kind"))

    def _cast(self, tree: dict[str, Any]) -> _Operand:
        target = str(tree["type_expr"]["type_name"]).lower()
        target = OTHER_TYPES.get(target, target)
        if target == "interval":
            return self._span(tree)
        child = self.node(tree["child"])
        if target == child.kind:
            return child
        if child.kind == "null" and f"CAST {target}" in _ROWS and target != "float":
            return self._constant(None, target.replace("integer", "bigint"))
        if target == "timestamp" and isinstance(text := self._constants.get(child), str):
            if (moment := moment_of(text)) is None:
                raise ValueError(f"there is no moment {text!r}")
            return self._constant(moment, "timestamp")
        if f"CAST {target}" not in _ROWS:
            hint = INSTEAD_OF_KINDS.get(f"CAST {target}", "cast to bigint, double, boolean, varchar or timestamp")
            raise ValueError(_refusal(f"cast of {child.kind} to {target}", hint))
        return self._apply(f"CAST {target}", [child])

    def _text(self, node: _Operand) -> _Operand:
        return node if node.kind == "varchar" else self._apply("CAST varchar", [node])

    def _span(self, tree: dict[str, Any]) -> _Operand:
        if has_columns(tree):
            raise ValueError(_refusal("span of a column", INSTEAD_OF_KINDS["+"]))
        months, micros = read_span(self._connection, tree)
        return self._constant((months, micros), "months") if months else self._constant(micros, "interval")


_BETWEEN = ("input", "lower", "upper")
_WIDER = (("bigint", "double"),)


def _told(row: Operation) -> str:
    return f"({', '.join(row.takes)}{', ...' if row.is_repeated else ''})"


def _refusal(what: str, instead: str) -> str:
    return f"unsupported {what}: {instead or 'make the value in a step, or of what docs/expressions.md lists'}"
