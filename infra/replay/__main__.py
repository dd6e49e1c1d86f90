"""`make demo`: start the stack, replay real data through the real DAGs, report; 0 only if the loop did all that.

With --running it starts none: the environment says where the stack is, as docker-compose does.
"""

import argparse
import os
import sys
from datetime import date, timedelta
from pathlib import Path

import psycopg2

from adapters.connect import Outside, outside
from infra.local.__main__ import default_home
from infra.local.stack import Stack
from infra.local.stream import source_admin_dsn
from infra.replay import online, period_report, report
from infra.replay.api import AirflowApi, AirflowError
from infra.replay.drive import Replay, ReplayPlan
from infra.replay.in_time import AnsweredWeek
from infra.replay.incident import Incident
from infra.replay.ledger_summary import ComparedFeatures, summarise_ledger
from infra.replay.live_source import LiveSource
from infra.replay.measures import ReplayedWeek
from infra.replay.online import OnlineSummary
from infra.replay.progress import ReplayProgress
from infra.replay.replayed import Period, Replayed
from infra.replay.replays import DEFAULT, REPLAYS
from infra.replay.state import ReplayError
from infra.replay.traffic import ClientTally
from pipeline.spec import UseCase, use_cases
from tasks.stream.check_store import CheckedStore, check_store
from tasks.stream.prepare_source import ADMIN, prepare_source

_MOST_HOURS = 10_000
_SEEN_SHARE = 0.085  # of a partition, from its beginning on: an outage in which fall a twentieth of its rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.replay", description=__doc__)
    parser.add_argument("--use-case", choices=sorted(REPLAYS), default=DEFAULT, help="whose data is replayed")
    parser.add_argument("--weeks", type=int, default=8, help="weeks to replay after the first champion")
    parser.add_argument(
        "--train-until",
        type=date.fromisoformat,
        default=None,
        help="data time of the first champion (default: what the replay says)",
    )
    parser.add_argument(
        "--incident-week",
        type=int,
        default=None,
        help="break a feed in this week, where the replay does (default: 6, or the last; 0: never)",
    )
    parser.add_argument(
        "--mended-after-hours",
        type=float,
        default=None,
        help="hours of data time in which that feed's operator mends it, from the page on (default: 14)",
    )
    parser.add_argument(
        "--seconds-per-hour",
        type=float,
        default=None,
        help="seconds that an hour of data time takes in which events are due (default: what the replay says)",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--home", type=Path, default=default_home(), help="where the embedded stack keeps its state")
    place.add_argument("--running", action="store_true", help="use the stack that the environment names")
    parser.add_argument("--report", type=Path, default=Path("report.html"))
    return parser.parse_args()


def _plan(use_case: UseCase, replayed: Replayed, arguments: argparse.Namespace) -> ReplayPlan:
    """The asked-for weeks, which must lie in the data; the incident is in week 6 where there is one, else the last."""
    first_as_of = use_case.grid.partition(str(arguments.train_until or replayed.train_until)).start
    last = use_case.source.last_partition
    most = (last - first_as_of.date()).days // use_case.grid.days + 1 if last else arguments.weeks
    if not 1 <= arguments.weeks <= most:
        raise ValueError(f"--weeks {arguments.weeks}: the data holds {most} weeks from {first_as_of:%d %b %Y} on")
    if arguments.incident_week and not replayed.is_broken:
        raise ValueError(f"--incident-week: the replay of {use_case.name} breaks no feed; its data has broken ones")
    hours = arguments.mended_after_hours
    if hours is not None and not (replayed.is_broken and arguments.incident_week != 0):
        raise ValueError("--mended-after-hours: no feed is broken in this replay")
    if hours is not None and not 0 <= hours <= _MOST_HOURS:
        raise ValueError(f"--mended-after-hours {hours:g}: expected 0 to {_MOST_HOURS}")
    broken = min(6, arguments.weeks) if arguments.incident_week is None else arguments.incident_week
    pace = arguments.seconds_per_hour
    return ReplayPlan(
        first_as_of=first_as_of,
        weeks=arguments.weeks,
        incident_week=(broken or None) if replayed.is_broken else None,
        mended_after=timedelta(hours=14 if hours is None else hours),
        seconds_per_hour=replayed.seconds_per_hour if pace is None else pace,
    )


def _start(stack: Stack, progress: ReplayProgress) -> None:
    """The embedded stack, and this process told where it is."""
    progress.say("stack", "starting PostgreSQL, S3, MLflow and Airflow")
    started = stack.start(
        usual_ports=True, tell=lambda event: progress.waiting("stack", f"{event['name']}: {event['state']}")
    )
    progress.say("stack", "healthy" if started else "already running")
    os.environ.update(stack.environment())


def _publish(use_case: UseCase, world: Outside, admin_dsn: str | None) -> None:
    """What the source's owner does once, so that the stream may follow its log."""
    if admin_dsn is None or world.settings.follower_dsn is None:
        raise ValueError(f"{use_case.name} follows by cdc: set WINDSOCK_SOURCE_ADMIN_DSN and WINDSOCK_FOLLOWER_DSN")
    prepare_source(use_case, admin_dsn, world.settings.follower_dsn)


def _replay(replayed: Replayed, arguments: argparse.Namespace, progress: ReplayProgress, admin_dsn: str | None) -> None:
    world = outside()
    use_case = use_cases(world.settings.params)[replayed.use_case]
    plan = _plan(use_case, replayed, arguments)
    source = LiveSource(world.source, replayed.source)
    rows = source.open(plan.first_as_of)
    if use_case.source.follow == "cdc":
        _publish(use_case, world, admin_dsn)
    progress.say("source", ", ".join(f"{count:,} {table}" for table, count in rows.items()))
    airflow, user, password = (os.environ[f"AIRFLOW_{name}"] for name in ("URL", "ADMIN_USER", "ADMIN_PASSWORD"))
    api = AirflowApi(airflow, user=user, password=password)
    replay = Replay(use_case=use_case, replayed=replayed, outside=world, source=source, api=api, progress=progress)
    replay.run(plan)
    tally = replay.traffic.tally
    served = online.summarise_online(use_case, world)
    weeks, answered = report.write_report(use_case, replayed, world, to=arguments.report, served=served)
    print(f"\n{report.format_weeks(weeks)}\n")
    if periods := period_report.describe_periods(replayed.periods, weeks):
        print(f"{period_report.format_periods(periods)}\n")
    compared = summarise_ledger(use_case, world)
    checked = check_store(use_case, world) if use_case.source.follow else None
    if answered:
        print(f"{report.format_answers(answered)}\n")
    print(f"{report.format_online(served, tally)}")
    print(f"ledger     {compared.describe()}")
    print(f"store      {checked.describe() if checked else 'not followed'}\n")
    _check_promises(replayed, weeks, replayed.list_injected(world.source), plan.mended_after)
    _check_online(use_case, served, tally)
    _check_answers(answered)
    _check_ledger(compared)
    _check_store(checked)
    print(
        f"report     {arguments.report.resolve()}",
        f"Airflow    {os.environ['AIRFLOW_PAGE']}   login {user} / {password}",
        f"MLflow     {os.environ['MLFLOW_PAGE']}",
        sep="\n",
    )
    if served is not None:
        print(f"gateway    {os.environ.get('GATEWAY_PAGE') or os.environ['WINDSOCK_GATEWAY_URL']}")
    if "monitoring" in os.environ.get("COMPOSE_PROFILES", "").split(","):
        print(f"Grafana    {os.environ['GRAFANA_PAGE']}   login admin / SECRET_GRAFANA of .env")


def _check_promises(
    replayed: Replayed, weeks: list[ReplayedWeek], incidents: list[Incident], mended_after: timedelta
) -> None:
    """What the demo promises, checked on what it measured."""
    for broken in incidents:
        for week in weeks:
            if f"{week.start:%Y-%m-%d}" != broken.partition_key:
                continue
            ended = week.end if broken.paged_at is None else min(week.end, broken.paged_at + mended_after)
            is_seen = (ended - week.start) / (week.end - week.start) > _SEEN_SHARE
            if week.decision == "retrain" or (is_seen and week.decision != "block"):
                raise ReplayError(f"the broken feed of {broken.partition_key} led to {week.decision!r}, not to a page")
    within = replayed.retrained_within
    if within is not None and len(weeks) >= within and not any(week.retrain_outcome for week in weeks):
        raise ReplayError("no retrain was judged in the whole replay")
    for period in replayed.periods:
        if weeks and weeks[0].start.date() <= period.start and period.end <= weeks[-1].end.date():
            _check_period(period, [week.decision for week in period_report.weeks_of(period, weeks)])


def _check_period(period: Period, decisions: list[str]) -> None:
    """What is promised of a period that was replayed as a whole."""
    if period.expects is not None and period.expects not in decisions:
        raise ReplayError(f"{period.name}: expected a week with {period.expects!r}, got {', '.join(decisions)}")
    if period.expects == "block" and "retrain" in decisions:
        raise ReplayError(f"{period.name}: a broken feed led to a retrain: {', '.join(decisions)}")


def _check_online(use_case: UseCase, served: OnlineSummary | None, tally: ClientTally) -> None:
    if served is None or use_case.endpoint is None:
        return
    if not served.parity.holds(use_case.endpoint.rollout.tolerance):
        raise ReplayError(f"online does not say what batch says: {served.parity}")
    if tally.failed or tally.static:
        raise ReplayError(
            f"of {tally.requests} online requests {tally.failed} failed, {tally.static} were answered by the gateway"
            f" alone; see {use_case.name}.watch in Airflow"
        )
    if tally.steps and not tally.requests:
        raise ReplayError("nobody asked online as time went by: the requests could not be made")


def _check_answers(weeks: list[AnsweredWeek]) -> None:
    """How many come in time is a matter of the machine at this speed; that each comes is not."""
    for week in weeks:
        if week.answered < week.events:
            raise ReplayError(
                f"of {week.events} events of {week.start:%d %b} {week.events - week.answered} were never answered;"
                " see known_events in the warehouse"
            )
    if weeks and not any(week.in_time for week in weeks):
        raise ReplayError("no event was answered in time: data time goes by too fast for this machine")


def _check_ledger(compared: ComparedFeatures) -> None:
    if compared.defects:
        raise ReplayError(f"{compared.defects} served features differ from batch's without a proved cause")


def _check_store(checked: CheckedStore | None) -> None:
    if checked is not None and checked.different:
        raise ReplayError(f"the online store is not what a rebuild gives: {checked.describe()}")


def main() -> int:
    """Exit status 0 if the loop did everything, 1 with the reason otherwise, 130 on Ctrl-C (the stack is stopped)."""
    arguments, progress = _arguments(), ReplayProgress()
    stack, replayed = None if arguments.running else Stack(arguments.home), REPLAYS[arguments.use_case]
    try:
        replayed.require_data()
        if stack is not None:
            _start(stack, progress)
        admin_dsn = os.environ.get(ADMIN) if stack is None else source_admin_dsn(stack.home())
        _replay(replayed, arguments, progress, admin_dsn)
        if stack is not None:
            print("The stack is running: `make stop` ends it, `make clean` also deletes its data.")
    except (ReplayError, AirflowError, ValueError, psycopg2.Error, ConnectionError) as error:
        print(
            f"\nthe replay stopped: {error}\nWhat was done is kept: run it again to go on from there.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\nstopping; what was done is kept", file=sys.stderr)
        if stack is not None:
            stack.stop()
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
