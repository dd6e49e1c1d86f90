"""Real servers for every test: one stack a session on free ports, fresh databases and buckets a test."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from psycopg2 import sql

from adapters.warehouse import Warehouse
from infra.local import postgres, s3
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY, Settings
from pipeline.spec import UseCase, use_cases
from tests.processes import (  # noqa: F401  # pytest takes its hooks from here
    mark_processes,
    pytest_configure,
    pytest_runtest_call,
    pytest_runtest_setup,
)

if TYPE_CHECKING:
    from adapters.connect import Outside

TEMPLATE = "warehouse_template"
# Databases that a test fills as it likes: one of each a stack, emptied after each test, for a copy of a whole
# database costs more than most tests do.
EMPTIED = {"source": "source_of_a_test", "optuna": "studies_of_a_test"}
RAM_DISK, RAM_DISK_NEEDS_BYTES = Path("/dev/shm"), 4_000_000_000  # noqa: S108  # a folder of its own, made by mkdtemp
# A server that ends with its tests need not outlive the machine. A crash of PostgreSQL itself loses nothing by these.
CARELESS = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB", "scram_iterations": "1"}
# How fast examples are made says how busy the machine is, not whether a claim holds.
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
os.environ["WINDSOCK_PORTS"] = f"{20000 + 1500 * (_WORKER % 8)}-{21500 + 1500 * (_WORKER % 8)}"


os.environ["WINDSOCK_TASK_NICENESS"] = "0"  # tests beside a stack take every processor: its tasks would hardly go on


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The loop, which keeps a worker for half of the time, starts first: begun later, it would run on alone."""
    mark_processes(items)
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)


def leave_dag_files_alone(home: Path) -> None:
    """No DAG file changes under a test: parsing all of them every half a minute costs an eighth of a processor.

    It is done again in two minutes, for a parse that a busy machine let run into its time limit. The stack's own
    settings are environment variables, which win over this file.
    """
    folder = home / "airflow"
    folder.mkdir(parents=True)
    (folder / "airflow.cfg").write_text("[dag_processor]\nmin_file_process_interval = 120\n")


def _find_ram_disk() -> Path | None:
    """Where files need no disk; None where there is no such place, or too little of it."""
    has_room = RAM_DISK.is_dir() and shutil.disk_usage(RAM_DISK).free >= RAM_DISK_NEEDS_BYTES
    return RAM_DISK if has_room else None


def start_stack(*parts: str, parent: Path | None = None) -> Iterator[Stack]:
    """A stack in a folder of its own, which ends with this process however that ends."""
    folder = Path(tempfile.mkdtemp(prefix="windsock-test-", dir=parent))
    folder.chmod(0o755)  # PostgreSQL runs as nobody when the tests run as root
    stack = Stack(folder / "home")
    leave_dag_files_alone(stack.folder)
    try:
        stack.start(parts, owner=os.getpid())
        options = [
            sql.SQL("alter system set {} = {}").format(sql.Identifier(k), sql.Literal(v)) for k, v in CARELESS.items()
        ]
        _administer(stack, *options, sql.SQL("select pg_reload_conf()"))
        _hash_passwords_once(stack)
        _make_template(stack)
        for owner, name in EMPTIED.items():
            make_database(stack, name, owner)
        yield stack
    finally:
        stack.stop()
        if not os.environ.get("WINDSOCK_KEEP"):  # set it to read the logs of a failed run
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def processes() -> None:
    """Says that whoever uses it starts processes: `make test-fast` leaves it out."""


@pytest.fixture(scope="session")
def stack(processes: None) -> Iterator[Stack]:
    """PostgreSQL and S3."""
    yield from start_stack("postgres", "s3", parent=_find_ram_disk())


@pytest.fixture(scope="session")
def mlflow_stack(processes: None) -> Iterator[Stack]:
    """PostgreSQL, S3 and MLflow. A test that asks for it has its `settings` and `outside` on it."""
    yield from start_stack("postgres", "s3", "mlflow", parent=_find_ram_disk())


def _administer(stack: Stack, *statements: sql.Composable, database: str = "postgres") -> None:
    connection = psycopg2.connect(stack.home().admin_dsn, dbname=database)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


def _hash_passwords_once(stack: Stack) -> None:
    """4096 rounds, at either end, are half of what a connection costs; they protect passwords that people choose."""
    passwords = {name: stack.home().secrets[name] for name in (postgres.ADMIN, *postgres.ROLES, *postgres.DATABASES)}
    _administer(
        stack,
        sql.SQL("set scram_iterations = 1"),
        *(
            sql.SQL("alter role {} password {}").format(sql.Identifier(name), sql.Literal(password))
            for name, password in passwords.items()
        ),
    )


def make_database(stack: Stack, name: str, owner: str, template: str = "template0") -> str:
    """A database of one of the stack's roles. Returns its address."""
    connection = psycopg2.connect(stack.home().admin_dsn)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            postgres.create_database(cursor, name, owner, template)
    finally:
        connection.close()
    home = stack.home()
    return postgres.postgres_dsn(home.ports["postgres"], name, owner, home.secrets[owner])


def drop_database(stack: Stack, name: str) -> None:
    """Remove a test's database, whoever is still connected."""
    _administer(stack, sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))


_EMPTY = """do $$ declare made text; begin
    for made in select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema' loop
        execute format('drop schema %I cascade', made);
    end loop;
    create schema public authorization pg_database_owner;
    grant usage on schema public to public;
end $$"""


def empty_database(stack: Stack, name: str) -> None:
    """Remove all that a test left in a database, whoever is still connected: it is as new."""
    _administer(stack, _end_connections(name))
    _administer(stack, sql.SQL(_EMPTY), database=name)


def _end_connections(database: str) -> sql.Composed:
    query = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = {}"
    return sql.SQL(query).format(sql.Literal(database))


def _make_template(stack: Stack) -> None:
    address = make_database(stack, TEMPLATE, "warehouse")
    Warehouse(address).migrate()
    _administer(  # a connection that is still open would make every copy fail
        stack,
        sql.SQL("alter database {} with allow_connections false is_template true").format(sql.Identifier(TEMPLATE)),
        _end_connections(TEMPLATE),
    )


@pytest.fixture
def running_stack(processes: None, request: pytest.FixtureRequest) -> Stack:
    """The stack of this test: the largest one it asks for."""
    found: Stack = request.getfixturevalue("mlflow_stack" if "mlflow_stack" in request.fixturenames else "stack")
    return found


@pytest.fixture
def settings(running_stack: Stack, tmp_path: Path) -> Iterator[Settings]:
    """A migrated warehouse, an empty source and studies database, empty buckets and a home: all this test's own."""
    home, tag = running_stack.home(), secrets.token_hex(4)
    keys = (home.secrets["s3_access"], home.secrets["s3_secret"])
    store = s3.make_s3_client(home.url("s3"), *keys)
    buckets = [f"lake-{tag}", f"dvc-{tag}"]
    for bucket in buckets:
        store.create_bucket(Bucket=bucket)
    warehouse = f"warehouse_{tag}"

    def emptied(owner: str) -> str:
        return postgres.postgres_dsn(home.ports["postgres"], EMPTIED[owner], owner, home.secrets[owner])

    yield Settings(
        home=tmp_path / "home",
        params=REPOSITORY / "params.yaml",
        code_sha="0" * 40,
        warehouse_dsn=make_database(running_stack, warehouse, "warehouse", TEMPLATE),
        source_dsn=emptied("source"),
        studies_dsn=emptied("optuna"),
        s3_endpoint=home.url("s3"),
        s3_access_key=keys[0],
        s3_secret_key=keys[1],
        lake_bucket=buckets[0],
        versions_bucket=buckets[1],
        tracking_uri=home.url("mlflow"),
        slack_token=None,
        slack_webhook=None,
        slack_channel="#windsock",
        slack_api=None,
    )
    drop_database(running_stack, warehouse)
    for name in EMPTIED.values():
        empty_database(running_stack, name)
    for bucket in buckets:
        store.delete_bucket(Bucket=bucket)  # the server is set to delete what is in it, too


@pytest.fixture
def outside(settings: Settings) -> "Outside":
    """The outside world of this test."""
    from adapters.connect import Outside

    return Outside(settings)


@pytest.fixture
def use_case() -> UseCase:
    """The use case that is shipped."""
    return use_cases(REPOSITORY / "params.yaml")["flights"]
