"""SQL that tells rows apart, nothing being the same as nothing."""

from collections.abc import Sequence


def same_sql(columns: Sequence[str], left: str, right: str) -> str:
    """SQL condition: two tables have the same in these columns, nothing being the same as nothing."""
    return " and ".join(f"{left}.{name} is not distinct from {right}.{name}" for name in columns) or "true"


def equal_places_sql(rows: str, given: str, columns: Sequence[str]) -> str:
    """SQL: a `place` for each of the given rows, of one among `rows` that equals it; of equal ones as many as given."""
    numbered = f"row_number() over (partition by {', '.join(f's.{name}' for name in columns)}) as number"
    return (
        f"select place from (select s.place, g.copies, {numbered} from {rows} s"
        f" join (select *, count(*) as copies from {given} group by all) g on {same_sql(columns, 's', 'g')})"
        " where number <= copies"
    )
