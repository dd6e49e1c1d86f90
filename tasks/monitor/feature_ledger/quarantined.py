"""The rows that validation has set aside in what a dataset was made from, by what tells them apart."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa

from adapters.connect import Outside
from expectations import suites
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import Identities, encode_identities
from tasks.ingest.check import canonical_schema
from tasks.ingest.quarantine import list_quarantined
from tasks.monitor.feature_ledger.known_rows import Objects, Place
from tasks.monitor.feature_ledger.row_causes import QuarantinedRow


def find_quarantined(
    use_case: UseCase, identities: Identities, objects: Objects, outside: Outside
) -> Mapping[Place, list[QuarantinedRow]]:
    """Those of some tables and partitions, as they are now; replayed ones too."""
    found = defaultdict[Place, list[QuarantinedRow]](list)
    for row in list_quarantined(use_case, outside):
        table = row["table_name"]
        key = use_case.grid.key(use_case.grid.containing(row["partition_start"]))
        if key not in objects.get(table, {}):
            continue
        identity = _encode_identity(use_case, table, row["row_data"], identities[table])
        found[table, identity].append(
            QuarantinedRow(
                partition=key,
                row_number=row["row_number"],
                reasons=tuple(row["reasons"]),
                is_back=row["status"] == "replayed",
            )
        )
    return found


def _encode_identity(use_case: UseCase, table: str, values: Mapping[str, Any], identity: Iterable[str]) -> str:
    schema = canonical_schema(suites(use_case.name)[table])
    key = {name: [_read(values[name], schema.field(name).type)] for name in identity}
    return encode_identities(pa.table(key, pa.schema([schema.field(name) for name in identity])))[0]


def _read(value: Any, kind: pa.DataType) -> Any:
    """A value of a key; None where it is none of its kind, as in rows that are followed."""
    types = pa.types
    try:
        if types.is_timestamp(kind) and value is not None:
            return datetime.fromisoformat(value)
        if types.is_date(kind) and value is not None:
            return date.fromisoformat(value)
        if types.is_decimal(kind) and value is not None:
            return number if (number := Decimal(value)).is_finite() else None
    except (ValueError, InvalidOperation):
        return None
    return None if types.is_integer(kind) and isinstance(value, str) else value
