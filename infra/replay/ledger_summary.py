"""What the ledger of served features says of a whole replay."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from adapters.connect import Outside
from pipeline.spec import UseCase
from tasks.monitor.feature_ledger.row_causes import ServedCause


@dataclass(frozen=True, kw_only=True)
class ComparedFeatures:
    """Answers in time, how many of their features were compared with batch's, and by which causes some differ."""

    answers: int
    compared: int
    causes: Mapping[str, int]

    @property
    def defects(self) -> int:
        """Differences without a proved cause."""
        return self.causes.get(ServedCause.DEFECT.value, 0)

    def describe(self) -> str:
        """As text, most frequent causes first."""
        most_first = sorted(self.causes.items(), key=lambda item: (-item[1], item[0]))
        causes = ", ".join(f"{cause} {count:,}" for cause, count in most_first) or "nothing differs"
        return f"{self.answers:,} answers in time, {self.compared:,} features beside batch's: {causes}"


def summarise_ledger(use_case: UseCase, outside: Outside) -> ComparedFeatures:
    """Over all partitions that were compared."""
    rows = outside.warehouse.query(
        "select answers, compared, causes from served_partitions where use_case = %s", (use_case.name,)
    )
    causes = Counter[str]()
    for row in rows:
        causes.update(row["causes"])
    return ComparedFeatures(
        answers=sum(row["answers"] for row in rows), compared=sum(row["compared"] for row in rows), causes=causes
    )
