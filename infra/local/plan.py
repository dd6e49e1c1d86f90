"""Which parts and steps a stack consists of."""

from infra.local import airflow, gateway, mlflow, postgres, s3, stream, torchserve
from infra.local.environment import make_environment
from infra.local.home import Home, inherited_environment
from infra.local.part import Part, SetUpStep
from infra.local.processes import MARKER

GROUPS = ("postgres", "s3", "mlflow", "torchserve", "gateway", "stream", "airflow")


def _migrate_warehouse(home: Home) -> None:
    from adapters.warehouse import Warehouse  # noqa: PLC0415  # loaded while PostgreSQL starts

    Warehouse(home.dsn("warehouse")).migrate()


def plan_stack(home: Home, wanted: tuple[str, ...]) -> list[Part | SetUpStep]:
    """The wanted groups' parts and steps, in any order: each names what it needs."""
    if unknown := set(wanted) - set(GROUPS):
        raise ValueError(f"expected parts out of {', '.join(GROUPS)}; got {', '.join(sorted(unknown))}")

    def mark(name: str) -> dict[str, str]:
        return {MARKER: f"{home.stack}/{name}"}

    shared = {**inherited_environment(), **make_environment(home, wanted)}
    groups: dict[str, list[Part | SetUpStep]] = {
        "postgres": [
            postgres.plan_postgres(home.folder, home.ports["postgres"], home.secrets, mark("postgres")),
            SetUpStep(name="warehouse", run=lambda: _migrate_warehouse(home), needs=("postgres",)),
        ],
        "s3": [
            s3.plan_s3(
                home.folder,
                home.ports,
                home.secrets["s3_access"],
                home.secrets["s3_secret"],
                {**shared, **mark("s3")},
            )
        ],
        "mlflow": [mlflow.plan_mlflow(home, {**shared, **mark("mlflow")})],
        "torchserve": torchserve.plan_torchserve(home, mark),
        "gateway": gateway.plan_gateway(home, mark),
        "stream": [*stream.plan_stream(home, shared, mark)],
        "airflow": airflow.plan_airflow(home, shared, mark),
    }
    return [item for name in GROUPS if name in wanted for item in groups[name]]
