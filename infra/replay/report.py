"""report.html and the closing summary: what the loop did, in pictures and tables."""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, select_autoescape

from adapters.connect import Outside
from infra.replay import in_time, measures, plots
from infra.replay.in_time import AnsweredWeek
from infra.replay.measures import ReplayedWeek
from infra.replay.online import OnlineSummary
from infra.replay.period_report import describe_periods, pool_metric
from infra.replay.replayed import Replayed
from infra.replay.traffic import ClientTally
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset

TITLES = {
    "log_loss": "Weekly log-loss (lower is better)",
    "auc": "Weekly AUC (higher is better)",
    "mae": "Weekly MAE",
    "rmse": "Weekly RMSE",
    "rmsle": "Weekly RMSLE",
}


def write_report(
    use_case: UseCase, replayed: Replayed, outside: Outside, *, to: Path, served: OnlineSummary | None
) -> tuple[list[ReplayedWeek], list[AnsweredWeek]]:
    """Write the report page; returns the weeks it shows, and how they were answered in time."""
    names = list(replayed.metrics)
    weeks = measures.compare_weeks(use_case, replayed.metrics, outside)
    snapshot = dataset.latest_snapshot(use_case, outside)
    if not weeks or snapshot is None:
        raise ValueError(f"{use_case.name}: no week has been decided yet: there is nothing to report")
    intervals = [Interval(week.start, week.end) for week in weeks]
    answered = in_time.measure_weeks(use_case, outside, snapshot, intervals, tuple(names))
    starts, ratios = measures.list_drift_ratios(use_case, outside)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["j2", "html"])
    )
    page = environment.get_template("report.html.j2").render(
        use_case=use_case,
        weeks=weeks,
        day=plots.choose_day_format([week.start for week in weeks]),
        metric_names=names,
        periods=describe_periods(replayed.periods, weeks),
        facts=_facts(weeks, names),
        pictures=[*(plots.plot_metric(weeks, name, TITLES[name]) for name in names), plots.plot_drift(starts, ratios)],
        ledger=measures.list_ledger_entries(use_case, outside),
        incidents=replayed.list_injected(outside.source),
        alerts=measures.list_alerts(use_case, outside),
        answered=answered,
        pooled=in_time.pool_answers(answered),
        answered_data=[in_time.describe_week(week) for week in answered],
        served=served,
        exchange=served and [json.dumps(part, indent=2) for part in (served.request, served.answer)],
    )
    to.write_text(page)
    return weeks, answered


def _facts(weeks: list[ReplayedWeek], names: list[str]) -> list[tuple[str, str]]:
    outcomes = [week.retrain_outcome for week in weeks if week.retrain_outcome is not None]
    return [
        *(
            (
                f"{name}, frozen / live",
                f"{pool_metric(weeks, 'frozen', name):.4f} / {pool_metric(weeks, 'live', name):.4f}",
            )
            for name in names
        ),
        ("retrains", str(len(outcomes))),
        ("promoted", str(outcomes.count("promoted"))),
        ("held, not sure enough", str(outcomes.count("held"))),
        ("refused", str(len(outcomes) - outcomes.count("promoted") - outcomes.count("held"))),
        ("recalibrated", str(sum(week.recalibrated for week in weeks))),
        ("blocked weeks", str(sum(week.decision == "block" for week in weeks))),
    ]


def format_weeks(weeks: list[ReplayedWeek]) -> str:
    """The closing table, as text."""
    names, day = list(weeks[0].live), plots.choose_day_format([week.start for week in weeks]).replace("%-d", "%d")
    head = (
        f"{'week':<{len(weeks[0].start.strftime(day)) + 2}}{'scored':>8}  {'live':<6}"
        + "".join(f"{name + ' frozen':>17}{'live':>9}" for name in names)
        + "  decision"
    )
    lines = [
        f"{week.start.strftime(day)}  {week.rows:>8,}  v{week.live_version:<5}"
        + "".join(f"{week.frozen[name]:>17.4f}{week.live[name]:>9.4f}" for name in names)
        + f"  {week.decision}{' -> ' + week.retrain_outcome if week.retrain_outcome else ''}"
        + (", recalibrated" if week.recalibrated else "")
        for week in weeks
    ]
    return "\n".join([head, *lines])


def format_answers(weeks: list[AnsweredWeek]) -> str:
    """How each week was answered in time, as text."""
    pooled = in_time.pool_answers(weeks)
    names = list(pooled.get("in_time", ()))
    head = f"{'week':<8}{'events':>8}{'in time':>9}{'knew all':>10}{'age p99':>9}" + "".join(
        f"{name + ' in time':>18}{'restated':>10}{'last week':>11}" for name in names
    )
    lines = [
        f"{week.start:%d %b}  {week.events:>8,}{week.share_in_time:>9.2%}{week.knew_all / week.answered:>10.2%}"
        f"{week.age_minutes_p99:>5.0f} min"
        + "".join(
            f"{week.metrics['in_time'][name]:>18.4f}{week.metrics['restated'][name]:>10.4f}"
            f"{week.metrics['last_partition'][name]:>11.4f}"
            for name in names
            if week.metrics
        )
        for week in weeks
    ]
    total = f"{'all':<8}{sum(week.events for week in weeks):>8,}" + (
        f"{sum(week.in_time for week in weeks) / sum(week.events for week in weeks):>9.2%}{'':>19}" if weeks else ""
    )
    total += "".join(
        f"{pooled['in_time'][name]:>18.4f}{pooled['restated'][name]:>10.4f}{pooled['last_partition'][name]:>11.4f}"
        for name in names
    )
    return "\n".join([head, *lines, total])


def format_online(served: OnlineSummary | None, tally: ClientTally) -> str:
    """What was answered online, as text."""
    if served is None:
        return "online     nothing: this stack has no gateway (README: HAProxy), so the models scored in batch only"
    parity = served.parity
    lines = [f"version {row['model_version']} {row['answers']:,}" for row in served.answered]
    asking = f"{tally.requests:,} requests as time went by, {tally.failed} failed, {tally.static} by the gateway"
    doors = f"{parity.rows:,} real events, {parity.features_compared} features: training = batch = online"
    largest = f"at most {parity.numbers_difference:.1e} apart, scores {parity.score_difference:.1e}"
    return f"online     {asking}; answers logged: {', '.join(lines)}\nparity     {doors}, {largest}"
