"""What tests of rollouts do again and again: promote, deploy, ask, and read what was written."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.handoffs import Release
from tasks.deploy import deploy, deployments
from tests.repeated import repeated
from tests.tasks.server_room import Misbehaviour, Room, crown


def release(room: Room, version: str, before: str | None, revision: int, outcome: str = "promoted") -> Release:
    as_of = room.outside.warehouse.query("select as_of from champions")[0]["as_of"]
    return Release(use_case=room.use_case.name, outcome=outcome, champion_version=version, previous_version=before,
                   revision=revision, as_of=as_of, actor="Ada")  # fmt: skip


def go(room: Room, version: str, before: str | None, revision: int, outcome: str = "promoted") -> str:
    return deploy.deploy_release(room.use_case, release(room, version, before, revision, outcome), room.outside)


@contextmanager
def clients(room: Room) -> Iterator[None]:
    """Requests keep coming."""

    def ask() -> None:
        if room.now.stable:
            room.traffic(1)

    with repeated(ask, seconds=0.005):
        yield


def challenge(room: Room, **bad: object) -> str:
    """Version 2 becomes champion and is deployed under traffic."""
    crown(room.outside, room.use_case, "2", "1", 2)
    room.bad["2"] = Misbehaviour(**bad)
    with clients(room):
        return go(room, "2", "1", 2)


def actions(room: Room) -> list[tuple[str, str]]:
    rows = room.outside.warehouse.query("select action, model_version from ledger order by entry")
    return [(row["action"], row["model_version"]) for row in rows if row["action"] != "promote"]


def alerts(room: Room) -> list[tuple[str, str]]:
    rows = room.outside.warehouse.query("select tier, fingerprint from alerts where resolved_at is null order by 2")
    return [(row["tier"], row["fingerprint"]) for row in rows]


def last(room: Room) -> deployments.Deployment:
    rows = room.outside.warehouse.query("select deployment_id from deployments order by position desc limit 1")
    return deployments.require_deployment(rows[0]["deployment_id"], room.outside)
