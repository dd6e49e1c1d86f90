"""Where the loop stands, read from the warehouse: what is ingested, built, decided and settled."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from adapters.connect import Outside
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.ledger import OUTCOMES

# Each table's partitions as last delivered. It stands before a question about them.
_CURRENT = """
with current as (
select distinct on (table_name, partition_start) table_name, partition_start, status, problem
from batches where use_case = %s order by table_name, partition_start, version desc
)
"""


class ReplayError(RuntimeError):
    """The loop did not do what it promises; the message says where to look."""


@dataclass(frozen=True, kw_only=True)
class ReplayState:
    """Questions about one use case, each answered from what is durable."""

    use_case: UseCase
    outside: Outside

    def list_clean_partitions(self) -> set[datetime]:
        """Starts of the partitions whose tables are all validated in their current version."""
        rows = self._query(
            _CURRENT + "select partition_start from current where status = 'clean' group by 1 having count(*) = %s",
            len(self.use_case.source.tables),
        )
        return {row["partition_start"] for row in rows}

    def describe_blocked(self) -> str | None:
        """What validation stopped, in its current version, in words."""
        rows = self._query(_CURRENT + "select * from current where status = 'blocked' order by partition_start")
        return (
            "; ".join(f"{r['table_name']} of {r['partition_start']:%d %b} was blocked: {r['problem']}" for r in rows)
            or None
        )

    def built_until(self) -> datetime | None:
        """The end of the latest feature snapshot."""
        moment: datetime | None = self._query('select max("end") as until from snapshots where use_case = %s')[0][
            "until"
        ]
        return moment

    def find_decision(self, week: Interval) -> dict[str, Any] | None:
        """What monitoring concluded at a week's end."""
        return next(iter(self._query("select * from decisions where use_case = %s and as_of = %s", week.end)), None)

    def is_settled(self, week: Interval) -> bool:
        """Whether a week is decided and, where something is to be trained or judged, that has ended.

        Raises:
            ReplayError: when the retrain failed.
        """
        decision = self.find_decision(week)
        if decision is None:
            return False
        rows = self._query(
            "select state from retrains where use_case = %s and decision_id = %s", decision["decision_id"]
        )
        if not rows:
            return True
        if rows[0]["state"] == "failed":
            raise ReplayError(
                f"the retrain of {decision['decision_id']} failed; see {self.use_case.name}.train in Airflow"
            )
        return bool(rows[0]["state"] == "done")

    def has_asked(self, decision_id: str) -> bool:
        """Whether a decision asked for a training, or for a challenger to be judged again."""
        return bool(self._query("select 1 from retrains where use_case = %s and decision_id = %s", decision_id))

    def has_deployed(self) -> bool:
        """Whether some version answers online.

        Raises:
            ReplayError: the first way to the server ended otherwise.
        """
        rows = self._query(
            "select version, stage, outcome, problem from deployments where use_case = %s and outcome is not null"
            " order by (outcome = 'full') desc, position desc limit 1"
        )
        if rows and rows[0]["outcome"] != "full":
            raise ReplayError("version {version} was not deployed: {outcome} at {stage}: {problem}".format(**rows[0]))
        return bool(rows)

    def describe_scoring(self, week: Interval) -> str:
        """How many rows of a week were scored by which version, in words."""
        rows = self._query(
            "select model_version, rows from scorings where use_case = %s and partition_start = %s", week.start
        )
        return ", ".join(f"{row['rows']:,} rows scored by version {row['model_version']}" for row in rows)

    def find_ledger_entry(self, decision_id: str | None) -> dict[str, Any]:
        """The ledger entry of the training that answered a decision; without one, the first entry.

        Raises:
            ReplayError: when there is none.
        """
        rows = self._query(
            """
            select l.* from ledger l where l.use_case = %s and action = any(%s)
            and (%s::text is null or l.as_of = (select as_of from decisions where decision_id = %s)) order by entry
            """,
            sorted(OUTCOMES.keys() - {"rollback", "recalibrate"}),  # no approval, and no stage of the deployment either
            decision_id,
            decision_id,
        )
        if not rows:
            raise ReplayError(f"training ended without a ledger entry; see {self.use_case.name}.train in Airflow")
        return rows[-1 if decision_id else 0]

    def _query(self, query: str, *params: Any) -> list[dict[str, Any]]:
        return self.outside.warehouse.query(query, (self.use_case.name, *params))
