"""The stores under their supervisor: started, refused to strangers, killed, found again, and gone without a trace."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import psutil
import psycopg2
import pytest
from botocore.exceptions import ClientError

from infra.local import s3
from infra.local.__main__ import format_status, main
from infra.local.airflow import is_beating
from infra.local.ports import find_socket_files, is_port_free
from infra.local.postgres import FOLLOWING, find_cluster_home, postgres_dsn
from infra.local.processes import ProcessIdentity, end_part, find_members, identify_process, wait_until_ended
from infra.local.stack import Stack, check_free_space
from pipeline.settings import REPOSITORY, read_settings
from tests.conftest import start_stack
from tests.waiting import until

T = TypeVar("T")


@pytest.fixture(scope="module")
def own(processes: None) -> Iterator[Stack]:
    """A stack that tests may hurt."""
    yield from start_stack("postgres", "s3")


@pytest.fixture
def fresh(processes: None) -> Iterator[Stack]:
    """A stack of one test, not started."""
    folder = Path(tempfile.mkdtemp(prefix="windsock-test-"))
    folder.chmod(0o755)
    stack = Stack(folder / "home")
    yield stack
    stack.stop()
    shutil.rmtree(folder)


def query(address: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(address)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def store(stack: Stack, **keys: str) -> Any:
    secrets = stack.home().secrets
    return s3.make_s3_client(
        stack.home().url("s3"), keys.get("access", secrets["s3_access"]), keys.get("secret", secrets["s3_secret"])
    )


def part_pid(stack: Stack, part: str) -> int:
    return int(stack.state()["parts"][part]["pid"])


def all_processes(stack: Stack) -> list[psutil.Process]:
    state, mark = stack.state(), stack.home().stack
    leaders = [ProcessIdentity(pid=p["pid"], started=p["started"]) for p in state["parts"].values() if "pid" in p]
    return [p for leader in leaders for p in find_members(leader, mark)]


def read_living(found: Iterable[psutil.Process], read: Callable[[psutil.Process], T]) -> list[T]:
    """What is read of each process, but for those that have ended since they were found."""
    told = list[T]()
    for process in found:
        with suppress(psutil.NoSuchProcess):  # a zombie, of which nothing can be read any more, is one of these
            told.append(read(process))
    return told


def command_line(process: psutil.Process) -> str:
    return " ".join(process.cmdline())


def kill(stack: Stack, part: str) -> None:
    """Kill a part as the kernel would, and wait until its supervisor has it up again."""
    before = part_pid(stack, part)
    os.kill(before, signal.SIGKILL)
    until(lambda: part_pid(stack, part) != before and stack.state()["parts"][part]["state"] == "up")


def test_every_part_is_healthy_by_a_real_check(own: Stack) -> None:
    rows = own.status()
    assert {row.part for row in rows} == {"postgres", "s3"}
    assert all(row.healthy and row.state == "up" for row in rows)
    assert main(["status", "--home", str(own.folder)]) == 0


def test_servers_listen_on_loopback_only(own: Stack) -> None:
    every = read_living(all_processes(own), psutil.Process.net_connections)
    listening = [c for each in every for c in each if c.status == psutil.CONN_LISTEN]
    assert len(listening) >= 8
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_the_env_file_is_private_and_complete(own: Stack) -> None:
    path = own.folder / "env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    values = dict(line.split("=", 1) for line in path.read_text().splitlines())
    assert read_settings(values).warehouse_dsn == own.home().dsn("warehouse")
    assert stat.S_IMODE((own.folder / "secrets.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((own.folder / "s3" / "identities.json").stat().st_mode) == 0o600


def test_no_secret_is_on_a_command_line_or_in_a_log_or_state_file(own: Stack) -> None:
    secrets = [value for name, value in own.home().secrets.items() if name != "stack"]
    words = " ".join(read_living(all_processes(own), command_line))
    files = [*own.home().logs.iterdir(), own.folder / "state.json", own.folder / "ports.json"]
    text = words + "".join(path.read_text(errors="replace") for path in files)
    assert not [secret for secret in secrets if secret in text]


def test_a_wrong_password_is_refused(own: Stack) -> None:
    address = postgres_dsn(own.home().ports["postgres"], "warehouse", "warehouse", "guess")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(address)


@pytest.mark.parametrize("database", ["airflow", "mlflow", "optuna", "warehouse", "postgres"])
def test_a_role_may_not_connect_to_anothers_database(own: Stack, database: str) -> None:
    assert query(own.home().dsn("source"), "select current_user") == [("source",)]
    address = postgres_dsn(own.home().ports["postgres"], database, "source", own.home().secrets["source"])
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        psycopg2.connect(address)


@pytest.mark.parametrize("wrong", [{"secret": "guess"}, {"access": "nobody", "secret": "guess"}])
def test_wrong_s3_keys_are_refused(own: Stack, wrong: dict[str, str]) -> None:
    assert {"lake", "dvc", "mlflow"} <= {b["Name"] for b in store(own).list_buckets()["Buckets"]}
    with pytest.raises(ClientError, match=r"SignatureDoesNotMatch|InvalidAccessKeyId"):
        store(own, **wrong).list_objects_v2(Bucket="lake")


def test_the_warehouse_is_migrated(own: Stack) -> None:
    assert query(own.home().dsn("warehouse"), "select count(*) from ledger") == [(0,)]


def test_a_second_start_changes_nothing(own: Stack) -> None:
    before = own.state()
    assert own.start(("postgres", "s3")) is False
    assert own.state() == before


def test_the_source_can_be_followed_in_a_cluster_that_was_made_without_a_word_of_it(own: Stack) -> None:
    """The settings are the server's at each start, not the cluster's: one of an older version has them, too."""
    [settings] = query(
        own.home().dsn("source"),
        "select jsonb_object_agg(name, current_setting(name)) from pg_settings where name = any("
        f"array{list(FOLLOWING)!r}) and source = 'command line'",
    )
    assert settings == (FOLLOWING,)


def test_postgres_killed_comes_back_with_what_was_committed(own: Stack) -> None:
    address = own.home().dsn("source")
    query(address, "create table kept as select generate_series(1, 1000) as n")
    restarts = own.state()["parts"]["postgres"]["restarts"]
    kill(own, "postgres")
    assert query(address, "select count(*), sum(n) from kept") == [(1000, 500500)]
    assert own.state()["parts"]["postgres"]["restarts"] == restarts + 1


def test_s3_killed_comes_back_with_what_was_stored(own: Stack) -> None:
    for number in range(20):
        store(own).put_object(Bucket="lake", Key=f"kept/{number}", Body=b"x" * 10_000 + str(number).encode())
    kill(own, "s3")
    found = [store(own).get_object(Bucket="lake", Key=f"kept/{n}")["Body"].read() for n in range(20)]
    assert found == [b"x" * 10_000 + str(n).encode() for n in range(20)]


def test_a_part_that_lives_and_does_nothing_is_started_again_and_those_that_wait_for_it_are_not(fresh: Stack) -> None:
    hasty = Stack(fresh.folder, hung_seconds=6)
    hasty.start(("postgres", "s3", "mlflow"), owner=os.getpid())
    before = {name: part_pid(hasty, name) for name in ("postgres", "s3", "mlflow")}
    leader = identify_process(before["postgres"])
    for process in find_members(leader, f"{hasty.home().stack}/postgres"):
        process.suspend()
    until(lambda: part_pid(hasty, "postgres") != before["postgres"] and all(row.healthy for row in hasty.status()), 120)
    assert "hung: no answer for 6 s" in (hasty.folder / "logs" / "supervisor.log").read_text()
    assert {name: part_pid(hasty, name) for name in ("s3", "mlflow")} == {n: before[n] for n in ("s3", "mlflow")}
    assert query(hasty.home().dsn("source"), "select 1") == [(1,)]
    hasty.stop()


def test_whether_a_server_beats_is_not_known_where_the_database_does_not_say(own: Stack) -> None:
    address = own.home().dsn("airflow")
    assert is_beating(address, "SchedulerJob") is None
    query(address, "create table job (job_type text, state text, latest_heartbeat timestamptz, hostname text)")
    assert is_beating(address, "SchedulerJob") is False
    query(address, "insert into job values ('SchedulerJob', 'running', now(), 'here')")
    assert is_beating(address, "SchedulerJob") is True
    holding = psycopg2.connect(address)
    try:
        with holding.cursor() as cursor:
            cursor.execute("lock table job in access exclusive mode")
            assert is_beating(address, "SchedulerJob") is None
    finally:
        holding.close()
    query(address, "drop table job")


def test_what_a_killed_supervisor_left_is_ended_and_started_again_with_its_data(own: Stack) -> None:
    query(own.home().dsn("source"), "create table survivor as select 7 as n")
    parts, ports = [identify_process(part_pid(own, name)) for name in ("postgres", "s3")], dict(own.home().ports)
    supervisor = psutil.Process(own.state()["supervisor"]["pid"])
    supervisor.kill()
    supervisor.wait()
    assert not own.running
    assert all(part.is_alive() for part in parts), "nobody was there to end them"
    assert own.start(("postgres", "s3"), owner=os.getpid()) is True
    assert not any(part.is_alive() for part in parts)  # one that its new parent did not yet reap has ended too
    assert dict(own.home().ports) == ports
    assert query(own.home().dsn("source"), "select n from survivor") == [(7,)]


def test_stop_leaves_no_process_and_a_start_finds_ports_and_data_again(own: Stack) -> None:
    store(own).put_object(Bucket="lake", Key="over/stop", Body=b"here")
    there, ports = all_processes(own), dict(own.home().ports)
    supervisor = psutil.Process(own.state()["supervisor"]["pid"])
    assert len(there) > 5
    assert own.stop() is True
    assert not wait_until_ended([*there, supervisor], 0)
    assert own.stop() is False
    assert main(["status", "--home", str(own.folder)]) == 1
    own.start(("postgres", "s3"), owner=os.getpid())
    assert dict(own.home().ports) == ports
    assert store(own).get_object(Bucket="lake", Key="over/stop")["Body"].read() == b"here"


@pytest.mark.usefixtures("processes")
def test_a_process_holds_its_ports_until_its_last_thread_has_ended() -> None:
    code = (
        "import ctypes, socket, threading, time; held = socket.create_server(('127.0.0.1', 0))\n"
        "threading.Thread(target=time.sleep, args=(600,)).start(); print(held.getsockname()[1], flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        process, identity, port = psutil.Process(child.pid), identify_process(child.pid), int(child.stdout.readline())
        until(lambda: process.status() == psutil.STATUS_ZOMBIE)
        assert not is_port_free(port)
        assert identity.is_alive()
        assert wait_until_ended([process], 0) == [process]
        process.kill()
        assert wait_until_ended([process], 10) == []  # nobody has collected it yet
        assert not identity.is_alive()
        assert is_port_free(port)


def test_a_stack_ends_with_its_owner_and_on_sigterm(fresh: Stack) -> None:
    code = (
        "import os, sys; from pathlib import Path; from infra.local.stack import Stack\n"
        f"Stack(Path({str(fresh.folder)!r})).start(('postgres', 's3'), owner=os.getpid())\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False)
    there = all_processes(fresh)
    assert there
    until(lambda: not fresh.running and not wait_until_ended(there, 0))
    fresh.start(("postgres",), owner=os.getpid())
    os.kill(fresh.state()["supervisor"]["pid"], signal.SIGTERM)
    until(lambda: not fresh.running and not all_processes(fresh))


def test_an_administrators_password_that_does_not_fit_is_said_and_nothing_is_left(fresh: Stack) -> None:
    fresh.start(("postgres",), owner=os.getpid())
    fresh.stop()
    path = fresh.folder / "secrets.json"
    path.write_text(path.read_text().replace(fresh.home().secrets["windsock"], "0" * 48))
    with pytest.raises(ValueError, match="refuses the administrator's password in the env file"):
        fresh.start(("postgres",), owner=os.getpid())
    until(lambda: not fresh.running)
    assert not all_processes(fresh)


def test_a_part_that_cannot_start_is_named_with_the_end_of_its_log(fresh: Stack) -> None:
    fresh.start(("postgres",), owner=os.getpid())
    fresh.stop()
    (fresh.folder / "postgres" / "data" / "postgresql.conf").write_text("max_connections = many\n")
    with pytest.raises(ValueError, match=r"(?s)postgres: ended with code 1 while starting.*max_connections"):
        fresh.start(("postgres",), owner=os.getpid())


def test_clean_deletes_the_state(fresh: Stack) -> None:
    fresh.start(("postgres",), owner=os.getpid())
    fresh.clean()
    assert not fresh.folder.exists()
    with pytest.raises(ValueError, match="`make up` starts one"):
        fresh.home()


@pytest.mark.usefixtures("processes")
def test_a_pid_that_was_used_again_is_not_killed() -> None:
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        before = replace(identify_process(stranger.pid), started=1.0)
        assert not before.is_alive()
        end_part(before, "no-such-stack/postgres", seconds=1)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's PostgreSQL runs as that user")
def test_root_may_keep_the_state_where_nobody_else_may_pass(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    stack = Stack(closed / "home")
    cluster_home = find_cluster_home(stack.folder)
    assert cluster_home is not None
    try:
        stack.start(("postgres",), owner=os.getpid())
        assert all(row.healthy for row in stack.status())
        assert (cluster_home / "postgres" / "data" / "PG_VERSION").exists()
    finally:
        stack.clean()
    assert not cluster_home.exists()


def test_a_disk_that_is_nearly_full_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="nearly full"):
        check_free_space(tmp_path, 10**18)
    seen = SimpleNamespace(free=2_100_000_000, total=252_000_000_000)
    monkeypatch.setattr("infra.local.stack.shutil.disk_usage", lambda _: seen)
    with pytest.raises(ValueError, match="2,100 MB free, 3,520 MB needed"):
        check_free_space(tmp_path)
    seen.free = 3_600_000_000
    check_free_space(tmp_path)


def test_a_command_without_a_stack_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--home", str(tmp_path), "--", "true"]) == 1
    assert "`make up` starts it" in capsys.readouterr().err
    assert main(["env", "--home", str(tmp_path)]) == 1
    assert "`make up` starts one" in capsys.readouterr().err
    assert format_status([]).startswith("part")


def test_stop_leaves_no_socket_file_behind(fresh: Stack) -> None:
    fresh.start(("postgres", "s3"), owner=os.getpid())
    ports = fresh.home().ports.values()
    assert any(find_socket_files(port) for port in ports)
    fresh.stop()
    assert not any(find_socket_files(port) for port in ports)
