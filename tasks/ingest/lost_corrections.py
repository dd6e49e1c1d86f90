"""Warns of corrections that new content of a partition does not have: they were made in the content before."""

from psycopg2.extensions import cursor

from adapters.connect import Outside
from pipeline.handoffs import Batch, TableBatch

_SHOWN = 200

# Of the content that was clean before this one, and what became of each: the row as bad as before has a number anew.
_LOST = """
select q.row_number, q.corrected::text, q.replayed_by, (
    select min(anew.row_number) from quarantine anew where (anew.use_case, anew.table_name, anew.partition_start)
        = (q.use_case, q.table_name, q.partition_start) and anew.raw_sha256 = %(now)s and anew.row_data = q.row_data)
from quarantine q join batches b using (use_case, table_name, partition_start, raw_sha256)
where q.use_case = %(use_case)s and q.table_name = %(table)s and q.partition_start = %(start)s
    and q.status = 'replayed' and b.version = (
        select max(version) from batches before where (before.use_case, before.table_name, before.partition_start)
            = (q.use_case, q.table_name, q.partition_start) and before.status = 'clean' and raw_sha256 <> %(now)s)
order by q.row_number"""


def warn_of_lost_corrections(at: cursor, fingerprint: str, landed: TableBatch, batch: Batch, outside: Outside) -> None:
    """Warn, in the caller's transaction, of what was replayed before and is not in the content that is clean now."""
    where = {"use_case": batch.use_case, "table": landed.table, "start": batch.partition_start}
    at.execute(_LOST, where | {"now": landed.raw_sha256})
    lost = at.fetchall()
    if not lost:
        outside.alerts.resolve(fingerprint, at)
        return
    lines = [
        f"row {number}, corrected by {actor}: {corrected}; "
        + ("the source has mended, changed or dropped it" if anew is None else f"as bad as before, now row {anew}")
        for number, corrected, actor, anew in lost[:_SHOWN]
    ]
    outside.alerts.record(
        at,
        tier="warning",
        use_case=batch.use_case,
        fingerprint=fingerprint,
        title=f"{batch.use_case}: {len(lost)} corrections of {landed.table} no longer apply",
        body=f"The source sent other content for the partition of {batch.partition_start:%Y-%m-%d}. Replay what is"
        " still wanted, then run the partition again to close this.\n" + "\n".join(lines),
    )
