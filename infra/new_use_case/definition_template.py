"""The text of a definition, with places for what differs from one table to another."""

TEMPLATE = '''"""What is known {lead} minutes before `{event}` of a row of `{table}`, to predict its `{target}`.

Written by `make new-use-case` from {rows} rows of {relation}. It works as it is, and is yours now.

The rule of time: a row is predicted at its prediction_time, {lead} minutes before the event. A feature may use
- of the row itself: what a client can tell at that moment, in the version that was known by then;
- of other rows: outcomes, from the moment on in which each became known. That is why what a window looks at has a
  column `known_at`: a window of 7 days holds what became known in the 7 days before the prediction, and nothing else.
docs/bring-your-own-table.md has all the words.
"""

from datetime import timedelta

from features.engine import FeatureSet
from features.request import RequestField
from features.vocabulary import Window, declare_source, known_at_sql, {imported}versions_sql

# What only you know. Do what a line says, and take it out: `make check-use-case NAME={name}` names those that are left.
BLANKS: tuple[str, ...] = (
{blanks}
)

_KEY = "{key}"
_BELIEVED_DAYS = {believed}  # a row is asked about so long after it became known: {known_days} were seen, and a week
_OUTCOME_DAYS = {outcome}  # an outcome may come so long after its row: {outcome_days} were seen, and a week
{clock}
_SOURCES = {{
    # `grain` are the columns by which rows never meet those of others in a step.
    "{table}": declare_source(
{declared}
        grain=_KEY.replace(",", ""),
    ),
}}


def _entity_sql(table: str) -> str:
    """The name of an event: with its event_time it is there once, in points as in labels."""
    return f"{entity}"


# In steps {{start}}, {{end}} and {{lead}} are filled in: the interval that is computed, and the lead.
_STEPS = {{
{told}    # A row that is told again is a version: each holds until the next becomes known (known_until).
    "entries": versions_sql("{versions_of}", _KEY),
    # What is predicted: each event in the version that was known at its prediction time.
    "asked": f"""
        select
            {asked},
            prediction_time
        from (select *, {event} - {{{{lead}}}} as prediction_time from entries) p
        where prediction_time >= {{{{start}}}} and prediction_time < {{{{end}}}}
            and {{known_at_sql("p", "prediction_time")}}
            and known_at >= prediction_time - interval {{_BELIEVED_DAYS}} days
    """,
    # What the target was, from when on it is known: {when_known}, and never before its row.
    "tellings": f"""
        select * from (
            select
                {carried},
                {label} as label,
                known_at as told_at, {outcome_at} as known_at
            from entries where {is_told}
        )
        where known_at < {{{{end}}}} and known_at < told_at + interval {{_OUTCOME_DAYS}} days
    """,
    # An outcome counts once in windows, when it is told first.
    "counted": f"""
        select *, lag(known_at) over (partition by {{_KEY}} order by known_at, told_at desc, label) as before
        from tellings
    """,
{unit}    "outcomes": f"""
        select
            {carried},
            known_at, cast(1 as bigint) as seen, {summed}
        from counted where before is null or before + interval {{_OUTCOME_DAYS}} days < known_at
    """,
    # What is learnt: of several tellings of one moment the last.
    "labels": f"""
        select {{_entity_sql("l")}} as entity_key, {event} as event_time, label, known_at as label_time
        from (
            select *, row_number() over (partition by {{_KEY}}, known_at order by told_at desc, label) as place
            from tellings where known_at >= {{{{start}}}} and known_at < {{{{end}}}}
        ) l where place = 1
    """,
}}

{left_out}
_POINT = {{
    "entity_key": _entity_sql("asked"),
    "event_time": "asked.{event}",
    "prediction_time": "asked.prediction_time",
{points}
}}


def _history(prefix: str, *key: str, absent: str | None = None) -> Window:
    """Outcomes of the rows that have the same key, over a week and a month: `<prefix>_seen_7d` and so on."""
    spans = ("7 days", "30 days")
    return Window(prefix=prefix, stream="outcomes", key=key, spans=spans, sums=({sums}), absent=absent)


_WINDOWS = (
    _history("all"),
{windows}
)


def _average(prefix: str, span: str) -> str:
    {rate}


{local}_NUMERIC = {{
{numeric}
}}

_CATEGORICAL = {{
{categorical}
    "event_weekday": {weekday},
}}

# What a client tells of an event: the columns of `asked`, but for prediction_time.
_REQUEST = (
{request}
)

{constant} = FeatureSet(
    name="{name}",
    sources=_SOURCES,
    # So far back do its steps look: the longest window, an outcome that came late, and one that was told before it.
    look_back=timedelta(days=max({longest} + 2 * _OUTCOME_DAYS, _BELIEVED_DAYS) + 1),
    request=_REQUEST,
    steps=_STEPS,
    lookups={{}},
    point_sql=_POINT,
    windows=_WINDOWS,
    joined=(),
    numeric_sql=_NUMERIC,
    categorical_sql=_CATEGORICAL,
)
'''
# Of events that are moments; a day is the same day everywhere.
CLOCK = """\
# Moments are UTC; hours and weekdays are of this clock: say the zone that people live by, such as Europe/Paris.
_CLOCK = "'{zone}'"
"""
LOCAL = """\
# The event as a clock there shows it: `hour(event_time)` would be the hour in UTC.
_LOCAL = local_time_sql(_CLOCK, "event_time")

"""
