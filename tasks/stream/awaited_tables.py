"""Tables that the source does not have yet: whoever follows or answers waits for them, and nobody is told.

Once something of a use case was followed or landed its tables were there: one that is not is gone, and that is told.
"""

from adapters.replication_setup import quote_relation
from adapters.warehouse import Warehouse
from pipeline.spec import UseCase

_ABSENT = """
select name from unnest(%s::text[], %s::text[]) as followed (name, relation)
where to_regclass(relation) is null order by name"""
_BEGUN = """
select 1 from stream_state where use_case = %(use_case)s
union all select 1 from batches where use_case = %(use_case)s limit 1"""


def list_absent_tables(use_case: UseCase, source: Warehouse) -> list[str]:
    """The followed tables that the source does not have."""
    names = sorted(use_case.source.followed_tables)
    relations = [quote_relation(use_case.source.find_relation(name)) for name in names]
    return [row["name"] for row in source.query(_ABSENT, (names, relations))]


def has_begun(use_case: UseCase, warehouse: Warehouse) -> bool:
    """Whether anything of a use case was ever followed or landed."""
    return bool(warehouse.query(_BEGUN, {"use_case": use_case.name}))


def find_awaited_tables(use_case: UseCase, warehouse: Warehouse, source: Warehouse) -> list[str]:
    """The followed tables that the source does not have yet; of a use case that has begun there are none."""
    absent = list_absent_tables(use_case, source)
    return [] if not absent or has_begun(use_case, warehouse) else absent
