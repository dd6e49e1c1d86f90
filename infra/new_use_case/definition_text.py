"""features/<use case>.py as text: a definition that works as it is, with comments that teach the rule of time."""

import json
import math
import textwrap
from collections.abc import Iterable, Iterator

from infra.new_use_case.answers import Answers
from infra.new_use_case.column_profile import ColumnProfile
from infra.new_use_case.definition_template import CLOCK, LOCAL, TEMPLATE
from infra.new_use_case.profile import TableProfile
from infra.new_use_case.roles import Roles, kinds_of_features

_ROOM_DAYS = 7
_LONGEST_DAYS = 30
_SPANS = ("7d", "30d")


def render_definition(answers: Answers, profile: TableProfile, roles: Roles) -> str:
    """The whole module."""
    known, event = roles.known.name, roles.event.name
    told = _names(roles.told)
    believed, outcome = (math.ceil(days) + _ROOM_DAYS for days in (profile.known_days, profile.outcome_days))
    windowed = [column.name for column in roles.windowed]
    carried = list(dict.fromkeys([*_names(roles.key), *windowed, event]))
    moment = roles.label_known.name if roles.label_known else None
    is_binary, scale = answers.kind == "binary", choose_scale(profile)
    has_clock = roles.event.kind == "timestamp"
    return TEMPLATE.format(
        name=answers.name,
        constant=answers.name.upper(),
        table=profile.name,
        relation=profile.relation,
        rows=f"{profile.rows:,}",
        lead=answers.lead_minutes,
        event=event,
        known=known,
        target=roles.target.name,
        blanks="\n".join(f"    {json.dumps(blank)}," for blank in list_blanks(answers, roles)),
        key=", ".join(_names(roles.key)),
        entity=_entity(roles, profile),
        believed=believed,
        outcome=outcome,
        longest=_LONGEST_DAYS,
        known_days=f"{profile.known_days:.1f}",
        outcome_days=f"{profile.outcome_days:.1f}",
        declared=_declared(roles, profile),
        told="" if known == "known_at" else _rename_moment(profile.name, known),
        versions_of=profile.name if known == "known_at" else "told",
        asked=_list_sql(dict.fromkeys([*told, event])),
        carried=_list_sql(carried),
        label=_label(answers, roles),
        outcome_at=f"greatest(known_at, {moment})" if moment
            else f"greatest(known_at, {event} + interval {answers.label_delay_hours} hours)",
        is_told=f"{roles.target.name} is not null" + (f" and {moment} is not null" if moment else ""),
        when_known=f"when `{moment}` says" if moment else f"{answers.label_delay_hours} hours after the event",
        summed="label as positives" if is_binary else f"cast(round(label * {scale}) as bigint) as total",
        unit="" if is_binary else f"    # Whole numbers add up to the same in any order: here 1/{scale} is 1.\n",
        sums='"seen", "positives"' if is_binary else '"seen", "total"',
        points="\n".join(f'    "{name}": "asked.{name}",' for name in told if name != "event_time"),
        windows="\n".join(_window(column, is_told=column in roles.told) for column in roles.windowed),
        rate=_rate(is_binary=is_binary, scale=scale),
        numeric="\n".join(_numeric(roles, is_binary=is_binary)),
        categorical="\n".join(f'    "{c.name}": "{c.name}",' for c in roles.categories),
        clock=CLOCK.format(zone=answers.zone or "UTC") if has_clock else "",
        imported="local_time_sql, " if has_clock else "",
        local=LOCAL if has_clock else "",
        weekday='f"dayname({_LOCAL})"' if has_clock else '"dayname(event_time)"',
        request="\n".join(_request(roles)),
        left_out=_left_out(roles, profile),
    )  # fmt: skip


def count_features(roles: Roles) -> int:
    """How many features the definition has."""
    own = len(roles.numbers) + len(roles.flags) + len(roles.moments) + len(roles.categories)
    return own + 2 + 2 + len(roles.windowed) * 3


def list_blanks(answers: Answers, roles: Roles) -> list[str]:
    """What only a person can answer, a sentence each."""
    target = roles.target.name
    blanks = [
        "columns: take out of _POINT, _REQUEST and the features what is filled in after the prediction",
        f"labels: say in `tellings` which rows have an outcome, where {target} is null or changes",
    ]
    if answers.kind == "binary":
        blanks.append("costs: say in params.yaml, endpoint.costs, what a missed and a needless warning cost")
    if answers.owner is None or answers.meaning is None:
        blanks.append("words: say in params.yaml who owns this (owner), and what the target means (target.meaning)")
    return blanks


def _rename_moment(table: str, known: str) -> str:
    query = f"select *, {known} as known_at from {table}"  # noqa: S608  # text that a person reads
    return f'''    # The moment from which a row may be used has this name in all steps.
    "told": "{query}",
'''


def _list_sql(names: Iterable[str]) -> str:
    """Columns of a select, over as many lines as it takes."""
    return textwrap.fill(", ".join(names), 100).replace("\n", "\n" + " " * 16)


def choose_scale(profile: TableProfile) -> int:
    """Parts of a unit of the target in which its sums are kept: a thousandth of how far targets lie apart, or finer."""
    return int(10 ** max(0, math.ceil(3 - math.log10(profile.target.distance or 1.0))))


def _names(columns: tuple[ColumnProfile, ...]) -> list[str]:
    return [column.name for column in columns]


def _left_out(roles: Roles, profile: TableProfile) -> str:
    """What a point does not have, as lines of a comment, with the reason of each."""
    told, late = _names(roles.told), _names(roles.filled_later)
    rule = {roles.known.name, roles.target.name, *([roles.label_known.name] if roles.label_known else ())}
    ruled = [name for name in _names(profile.columns) if name in rule - {*told, roles.event.name}]
    others = [c.name for c in profile.columns if c.name not in {*told, *late, *ruled, roles.event.name}]
    reasons = (
        ("which say when something became known, or are the target", ruled),
        ("which seem to be filled in with the outcome", late),
        (
            "names of rows, nothing but nulls, types that are not read, and of keys and texts all but the first few",
            others,
        ),
    )
    parts = [f"{', '.join(names)} ({reason})" for reason, names in reasons if names]
    text = f"A point, as columns of `asked`. Left out are {'; '.join(parts)}."
    return "\n".join(textwrap.wrap(text, 118, initial_indent="# ", subsequent_indent="# "))


def _entity(roles: Roles, profile: TableProfile) -> str:
    if roles.entity == (roles.event,):
        return f"'{profile.name}'"
    parts = (
        f"{{table}}.{c.name}" if c.kind == "text" else f"cast({{table}}.{c.name} as varchar)" for c in roles.entity
    )
    return " || '-' || ".join(parts)


def _declared(roles: Roles, profile: TableProfile) -> str:
    read = {c.name: c for c in (*roles.key, *roles.told, roles.event, roles.known, roles.target)}
    if roles.label_known:
        read[roles.label_known.name] = roles.label_known
    ordered = tuple(c for c in profile.columns if c.name in read)
    return "\n".join(f'        {kind}="{" ".join(names)}",' for kind, names in kinds_of_features(ordered).items())


def _label(answers: Answers, roles: Roles) -> str:
    name = roles.target.name
    if answers.kind == "regression":
        return f"cast({name} as double)"
    if roles.target.kind == "text":
        positive = str(answers.positive).replace("'", "''").replace("\\", "\\\\").replace('"', '\\"')
        positive = positive.replace("{", "{{").replace("}", "}}")  # it stands in an f-string
        return f"cast({name} = '{positive}' as bigint)"
    return f"cast({name} as bigint)"


def _window(column: ColumnProfile, *, is_told: bool) -> str:
    absent = f', absent="no outcome of {column.name} {{{column.name}}}"' if is_told else ""
    return f'    _history("{column.name}", "{column.name}"{absent}),'


def _rate(*, is_binary: bool, scale: int) -> str:
    if is_binary:
        return 'return f"{prefix}_positives_{span} / nullif({prefix}_seen_{span}, 0)"'
    return f'return f"{{prefix}}_total_{{span}} / nullif({{prefix}}_seen_{{span}}, 0) / {scale}.0"'


def _numeric(roles: Roles, *, is_binary: bool) -> Iterator[str]:
    word = "rate" if is_binary else "mean"
    yield from (f'    "{c.name}": "{c.name}",' for c in roles.numbers)
    yield from (f'    "{c.name}": "cast({c.name} as bigint)",' for c in roles.flags)
    yield from (
        f'    "{c.name}_days_before": "date_diff(\'hour\', {c.name}, event_time) / 24.0",' for c in roles.moments
    )
    if roles.event.kind == "timestamp":
        yield '    "event_hour": f"hour({_LOCAL})",'
    for prefix in ("all", *_names(roles.windowed)):
        yield from (f'    "{prefix}_{word}_{span}": _average("{prefix}", "{span}"),' for span in _SPANS)
        if prefix != "all":
            yield f'    "{prefix}_seen_30d": "{prefix}_seen_30d",'


def _request(roles: Roles) -> Iterator[str]:
    words = {"text": "varchar", "integer": "bigint", "float": "double", "decimal": "double"}
    for column in dict.fromkeys([*roles.told, roles.event]):
        kind = words.get(str(column.kind), column.kind)
        needed = "" if not column.nulls else ", required=False"
        meaning = f"`{column.source}` of the row.".replace("\\", "\\\\").replace('"', '\\"')
        yield (
            f'    RequestField(name="{column.name}", kind="{kind}", meaning="{meaning}",'
            f" example={_example(column)}{needed}),"
        )


def _example(column: ColumnProfile) -> str:
    if column.kind == "boolean":
        return "True"
    if column.kind == "integer":
        return str(int(column.low or 0))
    if column.kind in ("float", "decimal"):
        return f"{column.low or 0.0:.6g}"
    if column.kind in ("date", "timestamp"):
        return json.dumps(column.newest)
    return json.dumps(f"a {column.name}" if column.frequent is None else column.frequent, ensure_ascii=False)
