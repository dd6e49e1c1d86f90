"""What expressions call by name, on numbers and texts of one event, to the last bit as DuckDB has it.

No operand is None but where it says so. Where DuckDB stops a batch (a whole number divided by zero, a text as a
number that is none), a function gives None: one event must not cost the others of its request their answer. What is
rare (text that is not ASCII, numbers in text) is asked of DuckDB itself, and remembered.
"""

import math
import re
from functools import lru_cache, reduce
from typing import Any

from features.rare_cases import ask

_WHOLE = 1 << 63
_NAN = math.inf - math.inf  # with the sign that the processor gives it: in text it shows
_ALL_ARE_WHOLE = 2.0**52  # doubles from here on have no fraction
_PLAIN_WHOLE = re.compile(r"-?[0-9]{1,18}")


def fit(number: int | None) -> int | None:
    """A whole number of 64 bits; None beyond, where a batch stops."""
    return number if number is None or -_WHOLE <= number < _WHOLE else None


def divide(a: float, b: float) -> float:
    """By zero as well: infinite, or not a number."""
    if b:
        return a / b
    return _NAN if not a or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)


def divide_whole(a: int, b: int) -> int | None:
    """Towards zero; None by zero."""
    return None if b == 0 else a // b if (a < 0) == (b < 0) else -(-a // b)


def modulo_whole(a: int, b: int) -> int | None:
    """With the sign of the first; None by zero."""
    return None if b == 0 else abs(a) % abs(b) * (-1 if a < 0 else 1)


def modulo(a: float, b: float) -> float:
    """With the sign of the first; not a number by zero, or of infinity."""
    return _NAN if not b or math.isinf(a) else math.fmod(a, b)


def greatest(*values: Any) -> Any:
    """The greatest of those that are there; what is not a number is greater than any."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return reduce(lambda a, b: b if b > a or (b != b and a == a) else a, there)  # noqa: PLR0124  # NaN


def least(*values: Any) -> Any:
    """The least of those that are there; not a number, where none is."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return reduce(lambda a, b: b if b < a or (a != a and b == b) else a, there)  # noqa: PLR0124  # NaN


def sign_of(number: float) -> int:
    """-1, 0 or 1; 0 where it is not a number."""
    return (number > 0) - (number < 0)


def truncate(number: float) -> float:
    """Towards zero, with its sign."""
    return number if not abs(number) < _ALL_ARE_WHOLE else math.copysign(float(int(number)), number)


def floor(number: float) -> float:
    """A double again, with its sign."""
    return number if not abs(number) < _ALL_ARE_WHOLE else math.copysign(float(math.floor(number)), number)


def ceil(number: float) -> float:
    """Likewise."""
    return number if not abs(number) < _ALL_ARE_WHOLE else math.copysign(float(math.ceil(number)), number)


def round_half_away(number: float) -> float:
    """A half goes away from zero, as in C."""
    if not abs(number) < _ALL_ARE_WHOLE:
        return number
    whole = math.floor(abs(number))
    return math.copysign(float(whole + (abs(number) - whole >= 0.5)), number)


def round_to(number: float, digits: int) -> float:
    """To digits after the point: scaled, rounded, scaled back."""
    scale = math.inf if digits > 308 else 10.0**digits
    rounded = round_half_away(number * scale) / scale
    return rounded if math.isfinite(rounded) else number


def root(number: float) -> float:
    """Not a number below zero."""
    return _NAN if number < 0 else math.sqrt(number)


def ln(number: float) -> float:
    """Infinite of zero, not a number below."""
    return math.log(number) if number > 0 else -math.inf if number == 0 else _NAN


def log10(number: float) -> float:
    """Likewise."""
    return math.log10(number) if number > 0 else -math.inf if number == 0 else _NAN


def exp(number: float) -> float:
    """Infinite where it is too great."""
    try:
        return math.exp(number)
    except OverflowError:
        return math.inf


def power(base: float, exponent: float) -> float:
    """As C has it: what is too great is infinite, a root of a negative number is not a number."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.copysign(math.inf, base) if exponent % 2 == 1 else math.inf
    except ValueError:
        if base:
            return _NAN
        return math.copysign(math.inf, base) if exponent % 2 == 1 else math.inf


def single(number: int) -> float:
    """A whole number as it must be to be rounded to 32 bits once: what is lost of it is kept in its last bit."""
    if -(1 << 53) <= number <= 1 << 53:
        return float(number)
    size, lost = abs(number), max(abs(number).bit_length() - 53, 0)
    kept = size >> lost
    return math.copysign(math.ldexp(kept | bool(size - (kept << lost)), lost), number)


def to_whole(number: float) -> int | None:
    """The nearest whole number of 64 bits, of two the even one; None where there is none."""
    return round(number) if -9223372036854775808.0 <= number < 9223372036854775808.0 else None


def to_integer(number: float) -> int | None:
    """Likewise, of 32 bits."""
    whole = to_whole(number)
    return whole if whole is not None and -(1 << 31) <= whole < 1 << 31 else None


def double_text(number: float) -> str:
    """As a batch writes a double."""
    if 1e-4 <= abs(number) < 1e15 or number == 0:
        return repr(number)
    told: str = ask("cast(cast(? as double) as varchar)", number)
    return told


def whole_of(text: str) -> int | None:
    """The whole number that a text is, rounded where it has a fraction; None where it is none."""
    if _PLAIN_WHOLE.fullmatch(text):
        return int(text)
    told: int | None = ask("try_cast(cast(? as varchar) as bigint)", text)
    return told


def integer_of(text: str) -> int | None:
    """Likewise, of 32 bits."""
    told: int | None = ask("try_cast(cast(? as varchar) as integer)", text)
    return told


def double_of(text: str) -> float | None:
    """The number that a text is; None where it is none."""
    told: float | None = ask("try_cast(cast(? as varchar) as double)", text)
    return told


def boolean_of(text: str) -> bool | None:
    """True or false; None where a text says neither."""
    told: bool | None = ask("try_cast(cast(? as varchar) as boolean)", text)
    return told


def lower(text: str) -> str:
    """Python lowers some letters beyond ASCII to two, DuckDB none."""
    if text.isascii():
        return text.lower()
    told: str = ask("lower(cast(? as varchar))", text)
    return told


def upper(text: str) -> str:
    """Likewise."""
    if text.isascii():
        return text.upper()
    told: str = ask("upper(cast(? as varchar))", text)
    return told


def trim(text: str) -> str:
    """Without spaces at both ends, of which there are more kinds than ASCII's one."""
    if text.isascii():
        return text.strip(" ")
    told: str = ask("trim(cast(? as varchar))", text)
    return told


def right(text: str, count: int) -> str:
    """The last letters."""
    return text[max(len(text) - count, 0) :]


def substring(text: str, start: int, count: int) -> str:
    """Letters from the `start`th on."""
    return text[max(start - 1, 0) : max(start - 1 + count, 0)]


def join(*values: str | None) -> str:
    """All that are there."""
    return "".join([value for value in values if value is not None])


def like(text: str, pattern: str) -> bool:
    """Whether a pattern with `%` and `_` fits the whole text, in time that grows with the text alone."""
    first, middle, last, least_length = _pieces(pattern)
    if last is None:
        return first.fullmatch(text) is not None
    if len(text) < least_length or (begun := first.match(text)) is None:
        return False
    at, end = begun.end(), len(text) - last[0]
    for piece in middle:
        if (found := piece.search(text, at, end)) is None:
            return False
        at = found.end()
    return at <= end and last[1].fullmatch(text, end) is not None


@lru_cache(maxsize=1024)
def _pieces(pattern: str) -> tuple[re.Pattern[str], list[re.Pattern[str]], tuple[int, re.Pattern[str]] | None, int]:
    parts = pattern.split("%")
    compiled = [
        re.compile("".join("." if letter == "_" else re.escape(letter) for letter in part), re.DOTALL) for part in parts
    ]
    if len(parts) == 1:
        return compiled[0], [], None, len(pattern)
    return compiled[0], compiled[1:-1], (len(parts[-1]), compiled[-1]), sum(map(len, parts))


FUNCTIONS = (
    fit, divide, divide_whole, modulo_whole, modulo, greatest, least, sign_of, truncate, floor, ceil, round_half_away,
    round_to, root, ln, log10, exp, power, single, to_whole, to_integer, double_text, whole_of, integer_of, double_of,
    boolean_of, lower, upper, trim, right, substring, join, like,
)  # fmt: skip
