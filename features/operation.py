"""An operation of expressions as data: how it is written in SQL and in Python, what it takes, whether Spark has it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

WriteText = Callable[..., str]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One row of `features.operation_table`: evaluator, docs, generated tests and the Spark check all work from it.

    `name` is the parser's; `sql` shows it with operands a, b, c. `takes` are kinds of operands; also `'day'` (this
    constant), `whole` (a constant, not below 0), `pattern` (a constant text without a backslash) and `months` (a
    constant span that has months). The last kind of one `is_repeated` may come any number of times. `python` is its
    text from the names of its operands, `not_on_spark` why Spark does not give the same bits (empty: it does), and
    `stops` what DuckDB stops a batch for, where online the value is missing.
    """

    name: str
    sql: str
    takes: tuple[str, ...]
    gives: str
    python: WriteText
    is_repeated: bool = False
    not_on_spark: str = ""
    stops: str = ""

    def kinds_of(self, count: int) -> tuple[str, ...] | None:
        """The kinds that it takes as this many operands; None where it does not take so many."""
        more = count - len(self.takes)
        if more == 0 or (self.is_repeated and more > 0):
            return self.takes + self.takes[-1:] * more
        return None


def strict(text: str) -> WriteText:
    """An operation that is null where any operand is."""

    def write(*names: str) -> str:
        there = " or ".join(f"{name} is None" for name in names)
        return f"None if {there} else {text.format(*names)}"

    return write


def choose(*names: str) -> str:
    """Conditions, then the value of each and that of none of them."""
    conditions = len(names) // 2
    pairs = zip(names[conditions:-1], names[:conditions], strict=True)
    return " else ".join([*(f"{then} if {when}" for then, when in pairs), names[-1]])


def first_of(*names: str) -> str:
    """The first that is there."""
    return " else ".join([*(f"{name} if {name} is not None" for name in names[:-1]), names[-1]])


def all_of(*names: str) -> str:
    """`and`: null where what is not known decides."""
    return f"False if {_any_is(names, 'False')} else None if {_any_is(names, 'None')} else True"


def any_of(*names: str) -> str:
    """`or`, likewise."""
    return f"True if {_any_is(names, 'True')} else None if {_any_is(names, 'None')} else False"


def among(equal: str) -> WriteText:
    """`in`: null where it is none of those that are there, and one is not."""

    def write(value: str, *others: str) -> str:
        found = " or ".join(f"({equal.format(value, other)})" for other in others)
        unknown = _any_is(others, "None")
        return f"None if {value} is None else True if {found} else None if {unknown} else False"

    return write


def bounded(less: str) -> WriteText:
    """`between`: a bound that is missing does not matter where the other one decides."""

    def write(value: str, low: str, high: str) -> str:
        below = f"{low} is not None and ({less.format(value, low)})"
        above = f"{high} is not None and ({less.format(high, value)})"
        missing = f"{low} is None or {high} is None"
        return f"None if {value} is None else False if ({below}) or ({above}) else None if {missing} else True"

    return write


def call_with(name: str) -> WriteText:
    """A function that looks after what is missing itself."""
    return lambda *names: f"{name}({', '.join(names)})"


def _any_is(names: Sequence[str], value: str) -> str:
    return " or ".join(f"{name} is {value}" for name in names)
