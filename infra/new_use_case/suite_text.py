"""expectations/<use case>.py as text: each column as it was seen, and bounds with room, each with its reason."""

import json
import math
from collections.abc import Iterator

from infra.new_use_case.column_profile import PATTERNS, ColumnProfile
from infra.new_use_case.plan import Plan
from infra.new_use_case.profile import TableProfile
from infra.new_use_case.roles import Roles

_DAY_HOURS = 24


def render_suites(profile: TableProfile, plan: Plan, roles: Roles) -> str:
    """The whole module."""
    expects = [line for column in profile.columns for line in _expect(column, profile, roles)]
    words = ["DeclaredColumn", "Suite", *(word for word in ("between", "expect_rows", "matching") if any(
        line.startswith(f"{word}(") for line in expects))]  # fmt: skip
    columns = "\n".join(f"            {line}" for column in profile.columns for line in _declare(column, profile))
    rules = "\n".join(f"            {line}," for line in expects)
    hours = ", ".join(_plausible(column) for column in profile.columns if column.hours and column is not roles.known)
    fresh = (
        f"{plan.fresh_hours},  # twice what nine of ten partitions have at most" if plan.fresh_hours is not None
        else "None,  # no rhythm was seen"
    )  # fmt: skip
    days = f"{profile.days[0].day} to {profile.days[-1].day}"
    return f'''"""What good rows of `{profile.name}` are.

Written by `make new-use-case` from {profile.rows:,} rows ({days}). Bounds have room, for they are there for
broken rows, not for rare ones; a row that does not meet one is set aside with its reason. It is yours now.
"""

from expectations.vocabulary import {", ".join(words)}

SUITES = {{
    "{profile.name}": Suite(
        columns={{
{columns}
        }},
        expects=(
{rules}
        ),
        fresh_hours={fresh}
        # Twice what was seen, and a day.
        plausible_hours={{{hours}}},
    ),
}}
'''


def _declare(column: ColumnProfile, profile: TableProfile) -> Iterator[str]:
    if column.kind is None:
        yield f"# left out: {column.source} is {column.left_out}"
        return
    parts = [f'kind="{column.kind}"', f"nullable={bool(column.nulls)}"]
    if column.source != column.name:
        parts.append(f"source={json.dumps(column.source, ensure_ascii=False)}")
    if column.zone:
        parts.append(f"zone={json.dumps(column.zone)}")
    if column.digits:
        parts.append(f"digits={column.digits}")
    nulls = f"  # null in {column.nulls:,} of {profile.rows:,} rows" if column.nulls else ""
    yield f'"{column.name}": DeclaredColumn({", ".join(parts)}),{nulls}'


def _expect(column: ColumnProfile, profile: TableProfile, roles: Roles) -> Iterator[str]:
    named, seen = f'"{column.name}"', f"of {profile.rows:,} rows"
    if column.values:
        values = json.dumps(list(column.values), ensure_ascii=False)
        reason = f"{seen} each has one of these {len(column.values)} values"
        yield f'expect_rows("ExpectColumnValuesToBeInSet", "{reason}", column={named}, value_set={values})'
    if column.pattern:
        yield f'matching({named}, r"{column.pattern}", "{seen} each has {PATTERNS[column.pattern]}")'
    # What counts up has no upper bound that lasts.
    counts_up = column in roles.key and column.kind == "integer"
    if column.low is not None and column.high is not None and not counts_up:
        low, high = widen(column.low, column.high)
        reason = f"{seen} each lies between {column.low:g} and {column.high:g}"
        yield f'between({named}, {low!r}, {high!r}, "{reason}")'


def widen(low: float, high: float) -> tuple[float, float]:
    """Bounds with as much room on either side as the values are wide; what is never below 0 stays so."""
    room = max(high - low, abs(high), 1.0)
    scale = 10.0 ** math.floor(math.log10(room))
    wide_low, wide_high = (math.floor((low - room) / scale) * scale, math.ceil((high + room) / scale) * scale)
    return _plain(0.0 if low >= 0 else wide_low), _plain(wide_high)


def _plain(value: float) -> float:
    return int(value) if value == int(value) and abs(value) < 1e15 else float(f"{value:.6g}")


def _plausible(column: ColumnProfile) -> str:
    assert column.hours is not None, "asked of moments alone"
    before, after = (math.ceil(2 * max(0.0, hours)) + _DAY_HOURS for hours in column.hours)
    return f'"{column.name}": ({before}, {after})'
