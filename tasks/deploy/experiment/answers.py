"""What the prediction log and the outcomes say of an experiment: its events, and the keys that were answered.

An event is compared only once its label had its time to come: of the newest ones those whose outcome came soon have a
label already, and of these alone a version that gives no warning looks cheap.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.deploy.experiment.log import Experiment
from tasks.deploy.experiment.sample_ratio import KeyCount
from tasks.deploy.experiment.sequential import ExperimentEvents, join_units, price_decisions

if TYPE_CHECKING:
    from adapters.connect import Outside

# An event asked twice counts by its first answer. The gateway draws a version for an entity, or for a body where none
# was named. Bodies that begin with the same event are one key here: its first answer was drawn like that of any other.
_KNOWN = """
with answers as (
    select entity_key, event_time, prediction_time, request_id, position, entity_id, decision, answered_at,
        model_version = %(treatment)s as treated,
        coalesce('entity ' || entity_id, 'event ' || first_value(entity_key || event_time) over (
            partition by request_id, answered_at order by position)) as key
    from online_answers
    where use_case = %(use_case)s and answered_at >= %(started_at)s and slot in ('stable', 'candidate')
        and model_version in (%(control)s, %(treatment)s)),
asked as (
    select distinct on (entity_key, event_time) * from answers
    order by entity_key, event_time, answered_at, request_id, position),
known as (
    select asked.*, label from asked join outcomes o on o.use_case = %(use_case)s
        and (o.entity_key, o.event_time) = (asked.entity_key, asked.event_time)
    where decision is not null and prediction_time < %(mature_until)s)"""
# With the share that was in force when it was asked.
_EVENTS = f"""{_KNOWN}
select entity_key, request_id, entity_id, treated, decision, label, share
from known join lateral (
    select share from experiment_looks where experiment_id = %(experiment_id)s and routed_at <= answered_at
    order by look desc limit 1) in_force on true
"""  # noqa: S608  # our own expression
# Left out is what may have been asked under another share: a request waits for up to a minute, and a look that was
# killed may have moved the share before it said so. So is what came after the last answer of either version, for
# the other's may be on their way; for a day, since a version whose rows are lost has no last answer.
_KEYS = f"""{_KNOWN},
moves as (
    select look, share, routed_at + interval '1 minute' as since, lead(looked_at) over (order by look) as until
    from (select *, lag(share) over (order by look) as before from experiment_looks
          where experiment_id = %(experiment_id)s) as looks
    where share is distinct from before),
in_force as (
    select array_agg(since order by look) as since, array_agg(coalesce(until, 'infinity') order by look) as until,
        array_agg(share order by look) as share
    from moves where since is not null),
complete as (
    select greatest(now() - interval '1 day', least(
        coalesce(max(answered_at) filter (where treated), '-infinity'),
        coalesce(max(answered_at) filter (where not treated), '-infinity'))) as until from answers),
keys as (
    select distinct on (is_known, key) is_known, treated, share[move] as share
    from (select false as is_known, key, treated, answered_at, request_id from answers
          union all select true, key, treated, answered_at, request_id from known) as each
    cross join in_force cross join lateral (select width_bucket(answered_at, since) as move) as placed
    where move > 0 and answered_at < until[move] and answered_at <= (select until from complete)
    order by is_known, key, answered_at, request_id)
select is_known, share, count(*) as keys, count(*) filter (where treated) as treated
from keys group by is_known, share order by is_known, share
"""  # noqa: S608  # our own expression
_ANSWERS = """
select count(*) as answers, count(*) filter (where degraded) as degraded from online_answers
where use_case = %s and answered_at >= %s and slot = 'candidate' and model_version = %s
"""


def find_mature_until(use_case: UseCase, outside: "Outside") -> datetime | None:
    """Predictions made before have had their label's time: a label lag before the latest dataset's end; None: none."""
    snapshot = dataset.latest_snapshot(use_case, outside)
    return None if snapshot is None else snapshot.end - use_case.time.label_lag


def read_events(experiment: Experiment, outside: "Outside", mature_until: datetime | None) -> ExperimentEvents:
    """The events with a known outcome, of predictions made before a moment; from one moment of the database."""
    parameters = vars(experiment) | {"mature_until": mature_until}
    with outside.warehouse.transaction(snapshot=True) as at:
        rows = outside.warehouse.copy_out(at.mogrify(_EVENTS, parameters).decode(), at=at)
    label, decision = (rows.column(name).to_numpy() for name in ("label", "decision"))
    return ExperimentEvents(
        treated=rows.column("treated").to_numpy().astype(bool),
        cost=price_decisions(
            label, decision.astype(bool), missed=experiment.costs.missed, needless=experiment.costs.needless
        ),
        share=rows.column("share").to_numpy().astype(np.float64),
        unit=join_units(*(_number_values(rows, name) for name in ("entity_key", "request_id", "entity_id"))),
    )


def count_keys(
    experiment: Experiment, outside: "Outside", mature_until: datetime | None
) -> tuple[list[KeyCount], list[KeyCount]]:
    """The keys that were answered, and those of the events of `read_events`; each by its first answer."""
    rows = outside.warehouse.query(_KEYS, vars(experiment) | {"mature_until": mature_until})
    counts = [(row.pop("is_known"), KeyCount(**row)) for row in rows]
    return [count for is_known, count in counts if not is_known], [count for is_known, count in counts if is_known]


def count_answers(experiment: Experiment, outside: "Outside") -> tuple[int, int]:
    """How often the treatment answered, outcome or not, and how often degraded."""
    [row] = outside.warehouse.query(_ANSWERS, (experiment.use_case, experiment.started_at, experiment.treatment))
    return row["answers"], row["degraded"]


def _number_values(rows: pa.Table, name: str) -> Any:
    """The distinct values of a column, numbered from 0; -1 where there is none."""
    indices = rows.column(name).combine_chunks().dictionary_encode().indices
    return indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.intp)
