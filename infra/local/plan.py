"""Which parts and steps a stack consists of."""

from infra.local import postgres, s3
from infra.local.home import Home, base_environment, environment
from infra.local.part import Part, Step
from infra.local.processes import MARKER

STORES = ("postgres", "s3")
ALL = STORES


def _marker(home: Home, part: str) -> dict[str, str]:
    return {MARKER: f"{home.stack}/{part}"}


def _migrate_warehouse(home: Home) -> None:
    from adapters.warehouse import Warehouse  # noqa: PLC0415  # the supervisor starts before it needs the driver

    Warehouse(home.dsn("warehouse")).migrate()


def plan(home: Home, wanted: tuple[str, ...]) -> list[Part | Step]:
    """The wanted parts, with the steps that belong to them, in any order: each names what it needs."""
    shared = {**base_environment(), **environment(home)}
    keys = (home.secrets["s3_access"], home.secrets["s3_secret"])
    everything: list[Part | Step] = [
        postgres.part(home.folder, home.ports["postgres"], home.secrets, _marker(home, "postgres")),
        s3.part(home.folder, home.ports, *keys, {**shared, **_marker(home, "s3")}),
    ]
    return [item for item in everything if item.name in wanted]
