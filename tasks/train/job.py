"""One piece of training work, and what came of it: what the refit makes and its record writes down."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.train.split import Split
from tasks.train.study import StudyResult

if TYPE_CHECKING:
    from features import FeatureSet
    from models.ensemble import Ensemble, Recipe
    from tasks.train.report import TrainingReport


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One piece of training work. `key` tells it from every other, and is the same for a retry."""

    use_case: UseCase
    snapshot: Snapshot
    study: StudyResult
    as_of: datetime
    reason: str
    decision_id: str | None
    definition: "FeatureSet"
    moments: Split
    recipe: "Recipe"

    @property
    def key(self) -> str:
        """A digest of what was asked for."""
        request = [self.study.study_name, self.as_of.isoformat(), self.reason, self.decision_id]
        return hashlib.sha256(json.dumps([*request, self.recipe.to_document()], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What training gave: the ensemble, and what the same configuration showed on validation rows."""

    ensemble: "Ensemble"
    metrics: dict[str, float]
    report: "TrainingReport"
    profile: dict[str, Any]
    rows: int
    seconds: float
    energy_joules: float | None
