"""What one step hands to the next: small frozen references (URIs, versions, counts, metrics), never data."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class VerdictAnswer(StrEnum):
    """What the gate answers; the values are stored in evidence and in the ledger."""

    PROMOTE = "promote"
    HOLD = "hold"  # not sure
    REFUSE = "refuse"  # something stands against it, or it is expected to be worse
    NEED_MORE_DATA = "need-more-data"


class ReleaseOutcome(StrEnum):
    """What promotion did; the values are stored in the ledger and with the decision that asked for the training."""

    PROMOTED = "promoted"
    HELD = "held"
    REFUSED = "refused"
    NEED_MORE_DATA = "need-more-data"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled-back"
    RECALIBRATED = "recalibrated"
    DRY_RUN = "dry-run"


@dataclass(frozen=True, kw_only=True)
class TableBatch:
    """One source table's rows of one partition, as landed and, once validated, as cleaned."""

    table: str
    raw_uri: str
    raw_sha256: str
    raw_rows: int
    clean_uri: str | None = None
    clean_sha256: str | None = None
    clean_rows: int | None = None
    quarantined_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One partition of a use case's source, all its tables. From `land`, then again from `validate`."""

    use_case: str
    partition_start: datetime
    partition_end: datetime
    tables: list[TableBatch]
    docs_uri: str | None = None

    def __post_init__(self) -> None:
        """Airflow's XCom knows the type of the outermost dataclass only and brings the inner ones back as dicts."""
        object.__setattr__(self, "tables", [TableBatch(**t) if isinstance(t, dict) else t for t in self.tables])


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One version of a use case's feature dataset: `version` is DVC's hash of the output folder."""

    use_case: str
    version: str
    git_revision: str
    start: datetime
    end: datetime
    partitions: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trained model in the registry, not yet judged. `as_of` is the data time it was asked for."""

    use_case: str
    model_version: str
    run_id: str
    bundle_uri: str
    bundle_sha256: str
    snapshot_version: str
    as_of: datetime
    cutoff: datetime
    holdout_start: datetime
    holdout_end: datetime
    reason: str
    decision_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's answer about a candidate, against a champion (None: the first). `answer` is a `VerdictAnswer`."""

    verdict_id: str
    use_case: str
    candidate_version: str
    champion_version: str | None
    answer: str
    reasons: list[str]
    effect: float | None
    effect_low: float | None
    effect_high: float | None
    evidence_uri: str
    as_of: datetime
    needs_approval: bool
    decision_id: str | None = None
    effect_error: float | None = None  # the effect's standard error; None too for verdicts of before it was kept


@dataclass(frozen=True, kw_only=True)
class RefittedWinner:
    """The winner of a verdict, fitted anew on all that was known (None: it diverged), and what speaks against it.

    Without reasons against it, it is what is promoted, in place of the version that was judged.
    """

    use_case: str
    judged_version: str
    model_version: str | None
    reasons: list[str]
    measured: dict[str, float | None]

    @property
    def promoted_version(self) -> str:
        """What a promotion puts in force."""
        return self.judged_version if self.reasons or self.model_version is None else self.model_version


@dataclass(frozen=True, kw_only=True)
class Release:
    """What promotion did. `outcome` is a `ReleaseOutcome`, or what an experiment in the ledger came to."""

    use_case: str
    outcome: str
    champion_version: str | None
    previous_version: str | None
    revision: int
    as_of: datetime
    actor: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Batch predictions of one partition by one pinned model version."""

    use_case: str
    partition_start: datetime
    partition_end: datetime
    model_version: str
    snapshot_version: str
    rows: int
    inserted: int
    updated: int


@dataclass(frozen=True, kw_only=True)
class Drift:
    """What monitoring one partition found and decided: ignore | alert | retrain | block."""

    use_case: str
    as_of: datetime
    model_version: str
    decision_id: str
    decision: str
    reasons: list[str]
    report_uri: str | None


def retrain_run_id(decision_id: str) -> str:
    """The id of the training run that answers a decision to retrain: starting it twice starts it once."""
    return f"retrain__{decision_id}"
