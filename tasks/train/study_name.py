"""Under which name a search keeps its trials: one that follows from whatever could change a trial's outcome."""

import hashlib
import json
from dataclasses import astuple
from datetime import UTC, datetime

from features import FeatureSet
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.train.split import split

# Raise it with a change of code after which a trial of the same parameters ends otherwise (a network, the encoder, the
# sampler, halving, the split): searches then start afresh. A module that is moved or renamed is no such change.
SEARCH_REVISION = 2

# The budget; what only the refit uses; who does the work; and what the moments of the split say already.
_NOT_OF_A_TRIAL = {"trials", "ensemble_seeds", "workers", "holdout_days"}


def name_study(use_case: UseCase, snapshot: Snapshot, as_of: datetime, definition: FeatureSet) -> str:
    """The name: use case, data, data time, revision and feature definition, parameters.

    It is the same for every worker and for whoever reads the result.
    """
    parameters = {
        "train": use_case.train.model_dump(mode="json", exclude=_NOT_OF_A_TRIAL),
        "seed": use_case.seed,
        "kind": use_case.target.kind,
        "moments": [moment.astimezone(UTC).isoformat() for moment in astuple(split(use_case, as_of))],
    }
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    data = f"{use_case.name}/{snapshot.version}/{as_of:%Y%m%dT%H%M}"
    return f"{data}/{SEARCH_REVISION}-{definition.digest()[:12]}/{digest[:12]}"
