"""Under which name a search keeps its trials: one that follows from whatever could change a trial's outcome."""

import hashlib
import json
from dataclasses import astuple
from datetime import UTC, datetime

import features
from adapters.connect import Outside
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.train.split import split
from tasks.train.study import list_study_names

# Raise it with a change of code after which a trial of the same parameters ends otherwise (a network, the encoder, the
# sampler, halving, the split): searches then start afresh. A module that is moved or renamed is no such change.
SEARCH_REVISION = 1

# The budget; what only the refit uses; who does the work; and what the moments of the split say already.
_NOT_OF_A_TRIAL = {"trials", "ensemble_seeds", "workers", "holdout_days"}

# Until commit 6d6a10f names ended in a digest of the code's bytes and one of the parameters, `workers` included. Such
# studies are of this revision.
_REVISION_OF_OLD_NAMES = 1
_WORKERS_IN_OLD_NAMES = range(1, 65)


def name_study(use_case: UseCase, snapshot: Snapshot, as_of: datetime, definition: features.FeatureSet) -> str:
    """Today's name: use case, data, data time, revision and feature definition, parameters."""
    parameters = {
        "train": use_case.train.model_dump(mode="json", exclude=_NOT_OF_A_TRIAL),
        "seed": use_case.seed,
        "kind": use_case.target.kind,
        "moments": [moment.astimezone(UTC).isoformat() for moment in astuple(split(use_case, as_of))],
    }
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    return f"{_prefix(use_case, snapshot, as_of)}{SEARCH_REVISION}-{definition.digest()[:12]}/{digest[:12]}"


def find_study_name(use_case: UseCase, snapshot: Snapshot, as_of: datetime, outside: Outside) -> str:
    """The name of the study to go on with: today's or, where only that exists, the newest with an old name.

    It is the same for every worker and for whoever reads the result: a search begun under an old name keeps it.
    """
    name = name_study(use_case, snapshot, as_of, features.definition(use_case.name))
    names = list_study_names(outside)
    if name in names or SEARCH_REVISION != _REVISION_OF_OLD_NAMES:
        return name
    prefix, digests = _prefix(use_case, snapshot, as_of), _old_digests(use_case, as_of)
    old = [each for each in names if each.startswith(prefix) and each.rpartition("/")[2] in digests]
    return old[-1] if old else name


def _prefix(use_case: UseCase, snapshot: Snapshot, as_of: datetime) -> str:
    return f"{use_case.name}/{snapshot.version}/{as_of:%Y%m%dT%H%M}/"


def _old_digests(use_case: UseCase, as_of: datetime) -> set[str]:
    """The last part of old names, for any number of workers: no other number is another search.

    The moments stand in it as Python prints them; those that come through Airflow print their time zone another way.
    """
    moments, found = repr(split(use_case, as_of.astimezone(UTC))), set()
    for workers in _WORKERS_IN_OLD_NAMES:
        train = use_case.train.model_copy(update={"workers": workers})
        document = train.model_dump_json(exclude={"trials", "ensemble_seeds"})
        for printed in (moments, moments.replace("datetime.timezone.utc", "Timezone('UTC')")):
            text = f"{document} {use_case.seed} {use_case.target.kind} {printed}"
            found.add(hashlib.sha256(text.encode()).hexdigest()[:12])
    return found
