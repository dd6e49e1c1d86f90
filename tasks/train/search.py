"""The search for a configuration: on validation rows only, and with the same best however often it was killed."""

from datetime import datetime

import features
from adapters.connect import Outside
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.train.split import split
from tasks.train.study import StudyResult, list_finished_trials, open_study, summarise_study
from tasks.train.study_name import name_study
from tasks.train.trainer import Trainer, require_rows
from tasks.train.trials import Search


def run_search(
    use_case: UseCase, snapshot: Snapshot, as_of: datetime, trials: int, outside: Outside, *, worker: int = 0
) -> None:
    """Search until the study has exactly `trials` trials, many at a time; goes on where a killed search stopped.

    Several workers, each with a number of its own, may share a study and its budget: whoever has room asks. A worker
    that was killed is to be run again, under its number; its trials are nobody else's. `load_study_result` says
    what was found, once all have ended: a worker may end before any trial has.

    Raises:
        ValueError: too few rows before the cut-off.
        FencedOut: a later search by the same worker has begun.
    """
    assert trials > 0, "a search needs a trial"
    if as_of > snapshot.end:
        raise ValueError(f"{use_case.name}: features reach to {snapshot.end}, training was asked for at {as_of}")
    definition = features.definition(use_case.name)
    name = name_study(use_case, snapshot, as_of, definition)
    moments = split(use_case, as_of)
    fence = outside.warehouse.begin(f"search/{name}/{worker}")
    study = open_study(name, use_case, outside)
    if len(list_finished_trials(study)) >= trials:
        return
    rows = dataset.load_rows(
        snapshot.version, use_case, outside, start=snapshot.start, end=moments.fit_until, known_by=moments.cutoff
    )
    require_rows(use_case, rows, moments)
    trainer = Trainer(use_case, definition, rows, moments)
    Search(use_case, study, trainer, trials, worker, fence, outside).run()


def load_study_result(use_case: UseCase, snapshot: Snapshot, as_of: datetime, outside: Outside) -> StudyResult:
    """What all workers of a search have found.

    Raises:
        ValueError: no trial that converged.
    """
    name = name_study(use_case, snapshot, as_of, features.definition(use_case.name))
    return summarise_study(open_study(name, use_case, outside))
