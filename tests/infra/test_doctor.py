"""The doctor: each thing newcomers trip over is named with what to change, and is not where it is right."""

import socket
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.doctor import __main__ as doctor
from infra.doctor import machine, stores
from infra.doctor.finding import Finding
from infra.local.ports import find_free_port
from infra.local.stack import Stack
from pipeline.settings import Settings
from tests.tasks import killed

Environment = dict[str, str]


@pytest.fixture
def environment(settings: Settings) -> Environment:
    return killed.environment(settings)


def wrong(findings: Iterable[Finding]) -> list[str]:
    return [str(finding) for finding in findings if not finding.is_ok]


def nobody() -> str:
    return f"127.0.0.1:{find_free_port(set())}"


def test_stores_that_are_right_are_left_alone(environment: Environment) -> None:
    found = [*stores.check_databases(environment), *stores.check_buckets(environment)]
    assert wrong(found) == []
    counted = Counter(finding.check.partition(" ")[0] for finding in found)
    assert counted == {"database": 3, "clock": 5, "bucket": 2}


def test_a_password_that_is_not_the_database_s(environment: Environment) -> None:
    right = environment["WINDSOCK_SOURCE_DSN"]
    user = right.partition("//")[2].partition(":")[0]
    environment["WINDSOCK_SOURCE_DSN"] = f"postgresql://{user}:guessed@{right.partition('@')[2]}"
    [said] = wrong(stores.check_databases(environment))
    assert "set the role's password as in WINDSOCK_SOURCE_DSN" in said
    assert "guessed" not in said


def test_a_database_that_is_not_there(environment: Environment) -> None:
    environment["WINDSOCK_WAREHOUSE_DSN"] = f"postgresql://warehouse:x@{nobody()}/warehouse"
    [said] = wrong(stores.check_databases(environment))
    assert "PostgreSQL is not where WINDSOCK_WAREHOUSE_DSN says" in said


@pytest.mark.parametrize(("ahead_seconds", "well"), [(0.4, True), (-4.9, True), (6.0, False), (-3600.0, False)])
def test_clocks_that_disagree(ahead_seconds: float, *, well: bool) -> None:
    found = stores.check_clock("PostgreSQL", ahead_seconds)
    assert found.is_ok is well
    assert ("ahead of" in found.observation) is (ahead_seconds > 0)


def test_keys_that_are_not_the_store_s(environment: Environment) -> None:
    environment["AWS_SECRET_ACCESS_KEY"] = "guessed"
    said = wrong(stores.check_buckets(environment))
    assert len(said) == 2
    assert all("SignatureDoesNotMatch" in one and "AWS_SECRET_ACCESS_KEY are not the server's" in one for one in said)


def test_a_bucket_that_was_never_made(environment: Environment) -> None:
    environment["WINDSOCK_VERSIONS_BUCKET"] = "nowhere"
    [said] = wrong(stores.check_buckets(environment))
    assert "make the bucket that WINDSOCK_VERSIONS_BUCKET names" in said


def test_a_store_that_is_not_there(environment: Environment) -> None:
    environment["WINDSOCK_S3_ENDPOINT"] = f"http://{nobody()}"
    said = wrong(stores.check_buckets(environment))
    assert len(said) == 2
    assert all("S3 is not where WINDSOCK_S3_ENDPOINT says" in one for one in said)


def test_mlflow_that_answers_is_left_alone(mlflow_stack: Stack, environment: Environment) -> None:
    assert wrong(stores.check_mlflow(environment)) == []


def test_mlflow_called_by_a_name_it_does_not_know(mlflow_stack: Stack, environment: Environment) -> None:
    port = environment["MLFLOW_TRACKING_URI"].rpartition(":")[2]
    [said] = wrong(stores.check_mlflow({**environment, "MLFLOW_TRACKING_URI": f"http://0.0.0.0:{port}"}))
    assert f"add 0.0.0.0:{port} to the server's MLFLOW_SERVER_ALLOWED_HOSTS" in said


def test_mlflow_that_is_not_there(environment: Environment) -> None:
    [said] = wrong(stores.check_mlflow({**environment, "MLFLOW_TRACKING_URI": f"http://{nobody()}"}))
    assert "MLflow is not where MLFLOW_TRACKING_URI says" in said


@pytest.mark.parametrize(
    ("free", "total", "change"),
    [
        (6 * 10**9, 10**11, ""),
        (4 * 10**9, 10**11, "make room for 6.0 GB"),
        (20 * 10**9, 2 * 10**12, "make room for 25.0 GB"),  # of which SeaweedFS keeps 20
    ],
)
def test_a_disk_without_room(
    free: int, total: int, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: SimpleNamespace(free=free, total=total))
    found = machine.check_disk(tmp_path)
    assert found.is_ok is not bool(change)
    assert change in found.remedy


def test_a_machine_without_memory() -> None:
    assert machine.check_memory(8_000_000_000).is_ok
    assert "TASKS_MEMORY" in machine.check_memory(2_000_000_000).remedy
    assert machine.read_memory_limit() > 100_000_000


@pytest.mark.parametrize(("limit", "total"), [("max", 8 * 2**30), (str(2**30), 2**30), (None, 8 * 2**30)])
def test_a_container_has_the_memory_that_it_is_given(limit: str | None, total: int, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {8 * 2**20} kB\nMemFree: 1 kB\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    if limit is not None:
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
    assert machine.read_memory_limit(tmp_path) == total


def test_a_port_that_another_has() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        [said] = wrong(machine.check_ports({"MLFLOW_PORT": port}))
    assert "or set MLFLOW_PORT in .env" in said
    assert wrong(machine.check_ports({"MLFLOW_PORT": find_free_port(set())})) == []


def test_a_gpu_that_torch_cannot_use(tmp_path: Path) -> None:
    assert machine.check_gpu(tmp_path, usable=False).is_ok
    (tmp_path / "nvidia0").touch()
    assert machine.check_gpu(tmp_path, usable=True).is_ok
    assert "CUDA build" in machine.check_gpu(tmp_path, usable=False).remedy


WELL, UNWELL = Finding(check="a", observation="is well"), Finding(check="b", observation="is not", remedy="mend it")
WAITS = Finding(check="c", observation="waits", hint="it comes")


def test_what_is_waited_for_is_no_fault_and_stands_apart_from_what_is_well() -> None:
    assert WAITS.is_ok
    levels = [str(finding).split()[0] for finding in (WELL, WAITS, UNWELL)]
    assert levels == ["ok", "note", "WRONG"]
    assert str(WAITS).endswith("-> it comes")


@pytest.mark.parametrize(
    ("machine_s", "stack_s", "code"),
    [([WELL], [WELL, WAITS], 0), ([WELL, UNWELL], [WELL], 1), ([WELL], [UNWELL, WAITS], 1)],
)
def test_it_ends_with_0_only_where_nothing_has_to_be_changed(
    machine_s: list[Finding], stack_s: list[Finding], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "check_machine", lambda _: iter(machine_s))
    monkeypatch.setattr(doctor, "check_stack", lambda _: iter(stack_s))
    monkeypatch.setattr(doctor.sys, "argv", ["doctor", "--running"])
    monkeypatch.setenv("WINDSOCK_HOME", str(tmp_path))
    assert doctor.main() == code


@pytest.mark.parametrize("unwell", [None, "_report", "_check_embedded", "_check_composed"])
def test_without_a_stack_named_machine_embedded_and_composed_all_count(
    unwell: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_report", "_check_embedded", "_check_composed"):
        monkeypatch.setattr(doctor, name, lambda *_, well=name != unwell, **__: well)
    monkeypatch.setattr(doctor.sys, "argv", ["doctor"])
    assert doctor.main() == (unwell is not None)


@pytest.mark.parametrize(("code", "well"), [(0, True), (1, False)])
def test_what_is_said_in_the_container_counts(
    code: int, *, well: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        "ps": subprocess.CompletedProcess([], 0, stdout="scheduler\n"),
        "exec": subprocess.CompletedProcess([], code, stdout="said there\n"),
    }
    (tmp_path / ".env").touch()
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "docker")
    monkeypatch.setattr(doctor, "run_compose", lambda verb, *_: answers[verb])
    assert doctor._check_composed(ports=True) is well
    assert "said there" in capsys.readouterr().out


def test_ports_that_are_not_set_are_the_usual_ones_and_those_of_the_embedded_stack_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []

    def ports(wanted: dict[str, int]) -> list[Finding]:
        asked.append(wanted)
        return [UNWELL]

    (tmp_path / ".env").write_text("AIRFLOW_PORT=\nMLFLOW_PORT=5001\n")
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: "docker")
    monkeypatch.setattr(doctor, "run_compose", lambda *_: subprocess.CompletedProcess([], 0, stdout=""))
    monkeypatch.setattr(doctor.machine, "check_ports", ports)
    assert doctor._check_composed(ports=False)
    assert not doctor._check_composed(ports=True)
    assert asked == [{"AIRFLOW_PORT": 8080, "MLFLOW_PORT": 5001, "GATEWAY_PORT": 8088, "GRAFANA_PORT": 3000}]


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ({}, ""),
        ({"EXECUTOR": "CeleryExecutor", "COMPOSE_PROFILES": "monitoring,celery"}, ""),
        ({"EXECUTOR": "CeleryExecutor", "COMPOSE_PROFILES": "celery,gpu", "WORKER_QUEUES": "default"}, ""),
        ({"EXECUTOR": "CeleryExecutor", "COMPOSE_PROFILES": "monitoring"}, "add `celery` to COMPOSE_PROFILES"),
        ({"EXECUTOR": "CeleryExecutor", "COMPOSE_PROFILES": "celery,gpu"}, "set WORKER_QUEUES=default"),
        ({"COMPOSE_PROFILES": "gpu"}, "set EXECUTOR=CeleryExecutor"),
    ],
)
def test_tasks_that_nobody_takes(told: Environment, change: str) -> None:
    found = doctor.check_executor(told)
    assert found.is_ok is not bool(change)
    assert change in found.remedy


def test_a_stack_is_asked_for_all_of_its_stores_and_for_airflow(environment: Environment) -> None:
    away = f"http://{nobody()}"
    told = {"MLFLOW_TRACKING_URI": away, "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": away}
    found = {f.check.partition(" ")[0]: f.is_ok for f in doctor.check_stack({**environment, **told})}
    well, wrong = ("database", "clock", "bucket", "stream"), ("MLflow", "execution")  # flights has no tables yet
    assert found == dict.fromkeys(well, True) | dict.fromkeys(wrong, False)


@pytest.mark.parametrize(
    ("code", "running", "change"),
    [
        (0, "", ""),
        (0, "postgres\nscheduler\n", ""),
        (0, "postgres\nmlflow\n", "`docker compose logs scheduler` says why"),
        (1, "", "start the engine"),
    ],
)
def test_containers_that_do_not_run_together(code: int, running: str, change: str) -> None:
    found = doctor.check_containers(subprocess.CompletedProcess([], code, stdout=running))
    assert found.is_ok is not bool(change)
    assert change in found.remedy
