"""How the operations of expressions are written in Python, from the names of their operands; None is null."""

from collections.abc import Callable, Sequence

WriteText = Callable[..., str]


def strict(text: str) -> WriteText:
    """An operation that is null where any operand is."""
    return lambda *names: f"None if {' or '.join(f'{name} is None' for name in names)} else {text.format(*names)}"


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


def _any_is(names: Sequence[str], value: str) -> str:
    return " or ".join(f"{name} is {value}" for name in names)
