"""The composed stack in an engine, from the build to its return after a loss (`make test-compose`).

The tests of this file follow each other on one stack: it takes minutes to start and to replay.
"""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from pipeline.settings import REPOSITORY
from tests.composed import Composed, composed
from tests.e2e.test_loop import RECORDED, WROTE
from tests.waiting import until

pytestmark = pytest.mark.compose
PROJECT = "windsock-test"
DECLARED = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text())["services"]
RUNNING = [name for name, one in DECLARED.items() if "profiles" not in one and one["restart"] != "no"]
# What answers a stranger on each network, of all that listens anywhere. The stores behind S3 are on none.
OPEN = {
    "data": {"postgres:5432", "s3:8333", "mlflow:5000", "api-server:8080", "exporter:9187"},
    "airflow": {"api-server:8080"},
    "management": {"torchserve:8086"},
    "online": {"torchserve:8085", "gateway:8088", "gateway:8090"},
    "metrics": {
        *("torchserve:8087", "gateway:8088", "gateway:8090"),
        *("exporter:9187", "prometheus:9090"),
    },
    "front": {"mlflow:5000", "api-server:8080", "gateway:8088", "gateway:8090"},
}
# The feed stays broken for the whole week: the moment of a page is the machine's, and here two stacks are compared.
DEMO = (
    *("run", "--rm", "-T", "demo", "python", "-m", "infra.replay", "--running"),
    *("--mended-after-hours", "168", "--report", "/var/lib/windsock/report.html"),
)
_OF_THE_MACHINE = {"drift", "served performance"}  # what was answered in time, or not, is judged there
_LISTEN = "0A"  # as the kernel writes it
_ASK = """
import socket, sys
for name, address, ports in (word.split("=") for word in sys.argv[1:]):
    for port in ports.split(","):
        with socket.socket() as probe:
            probe.settimeout(5)
            if probe.connect_ex((address, int(port))) == 0:
                print(f"{name}:{port}")
"""


@pytest.fixture(scope="module")
def stack(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with composed(PROJECT, tmp_path_factory.mktemp("compose"), {}) as found:
        yield found


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def test_every_service_is_healthy_as_nobody_and_only_pages_have_ports(stack: Composed) -> None:
    assert stack.services().keys() == set(RUNNING)
    assert stack.healthy()
    listed = docker("ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", "{{.Ports}}")
    published = [port for line in listed.splitlines() for port in line.split(", ") if "->" in port]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert {stack("exec", "-T", name, "id", "-u") for name in stack.services()} == {"10001"}


@pytest.fixture(scope="module")
def replayed(stack: Composed) -> str:
    """What the replay said at its end."""
    return stack(*DEMO, "--weeks", "1")


def test_the_replay_ends_well_and_the_gateway_answers(stack: Composed, replayed: str) -> None:
    assert f"http://127.0.0.1:{stack.told['AIRFLOW_PORT']}" in replayed
    answer = stack.ask()
    in_force = stack.fetch("warehouse", "select version from champions order by revision desc limit 1")
    assert (answer.status, answer.body["model_version"]) == (200, in_force)
    assert 0 < answer.body["probability"] < 1


@pytest.mark.usefixtures("replayed")
def test_every_step_and_the_model_say_which_code_it_was(stack: Composed) -> None:
    sha = stack.told["WINDSOCK_CODE_SHA"]
    without_retrain = [table for table in RECORDED if table != "retrains"]
    assert sorted(stack.fetch("warehouse", WROTE).split()) == [f"{table}|{sha}" for table in without_retrain]
    trained_by = "select distinct value from model_version_tags where key = 'windsock.code_sha'"
    assert stack.fetch("mlflow", trained_by) == sha


def test_the_doctor_has_nothing_to_say(stack: Composed) -> None:
    assert "WRONG" not in stack("exec", "-T", "scheduler", "python", "-m", "infra.doctor", "--running")


def listening(stack: Composed, name: str) -> set[int]:
    """The ports on which a container listens, on whatever address."""
    tables = stack("exec", "-T", name, "sh", "-c", "cat /proc/net/tcp /proc/net/tcp6").splitlines()
    rows = [line.split() for line in tables if not line.lstrip().startswith("sl")]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTEN}


@pytest.fixture(scope="module")
def ports(stack: Composed) -> dict[str, set[int]]:
    """Every port on which one of the containers listens, by service."""
    return {name: listening(stack, name) for name in RUNNING}


def test_management_and_the_stores_behind_s3_do_listen_somewhere(ports: dict[str, set[int]]) -> None:
    assert {8085, 8086, 8087} <= ports["torchserve"]
    assert {8333, 8888, 9333, 9340} <= ports["storage"]


@pytest.mark.parametrize("network", OPEN)
def test_a_stranger_on_a_network_reaches_what_it_is_for_and_nothing_else(
    stack: Composed, ports: dict[str, set[int]], network: str
) -> None:
    [found] = json.loads(docker("network", "inspect", f"{PROJECT}_{network}"))
    asked = []
    for member in found["Containers"].values():
        name = member["Name"].removeprefix(f"{PROJECT}-").removesuffix("-1")
        address = member["IPv4Address"].partition("/")[0]
        asked += [f"{name}={address}={','.join(map(str, ports[name]))}"] if ports[name] else []
    scan = ("run", "--rm", f"--network={PROJECT}_{network}", "windsock-airflow", "python", "-c", _ASK)
    assert set(docker(*scan, *asked).split()) == OPEN[network]


def started_at(container: str) -> str:
    return docker("inspect", "--format={{.State.StartedAt}}", container)


def kill(stack: Composed, name: str) -> None:
    """A container, the first of its service; back once it was started again."""
    container = stack("ps", "--quiet", name).splitlines()[0]
    was = started_at(container)
    stack("exec", "-T", name, "sh", "-c", "kill -9 -1", check=False)  # all but the first, which ends with them
    until(lambda: started_at(container) != was)


@pytest.fixture(scope="module")
def before(stack: Composed, replayed: str) -> dict[str, str]:
    """What the stack has after the replay."""
    return stack.kept()


@pytest.mark.parametrize("name", RUNNING)
def test_a_container_that_is_killed_returns_by_itself_and_nothing_is_lost(
    stack: Composed, before: dict[str, str], name: str
) -> None:
    kill(stack, name)
    until(stack.healthy, seconds=300)
    assert stack.kept() == before


def answers_statically(stack: Composed) -> bool:
    try:
        return stack.ask().body.get("fallback") is True
    except ConnectionError:  # it has only just been started
        return False


def test_the_gateway_starts_and_answers_while_no_model_server_does(stack: Composed, before: dict[str, str]) -> None:
    stack("rm", "--stop", "--force", "gateway", "torchserve")
    stack("up", "--detach", "gateway")
    assert "torchserve" not in stack.services()
    until(lambda: answers_statically(stack))
    stack("up", "--detach", "--wait")
    assert stack.kept() == before


def test_a_new_key_is_the_only_one_and_pools_keep_the_slots_they_were_given(stack: Composed) -> None:
    old, slots = stack.told["SECRET_GATEWAY"], "select slots from slot_pool where pool = 'gpu'"
    stack("exec", "-T", "scheduler", "airflow", "pools", "set", "gpu", "2", "as many as there are devices")
    text = stack.env_file.read_text()
    stack.env_file.write_text(text.replace(f"SECRET_GATEWAY={old}", f"SECRET_GATEWAY={old}x"))
    stack("up", "--detach", "--wait")
    assert stack.ask().status == 200
    stack.env_file.write_text(text)
    assert stack.ask().status == 401
    stack("up", "--detach", "--wait")
    assert (stack.ask().status, stack.fetch("airflow", slots)) == (200, "2")


_COMMIT = """
insert into weather (origin, observed_at, temp_f, known_at)
select 'JFK', told_until, 40, told_until from data_clock;
update data_clock set told_until = told_until + interval '1 hour'"""
_FOLLOWED = """
select count(*) from followed_rows
where table_name = 'weather' and (row_data::json ->> 'temp_f')::float = 40 and reasons is null"""


@pytest.mark.usefixtures("before")
def test_what_is_committed_while_the_stream_is_killed_and_comes_back_is_in_the_store(stack: Composed) -> None:
    """Each once, and the store is as if nothing had been; so is the log behind which nobody may stay."""
    followed = int(stack.fetch("warehouse", _FOLLOWED))
    for _ in range(3):
        stack.fetch("source", _COMMIT)
        kill(stack, "stream")
        stack.fetch("source", _COMMIT)
    clock = stack.fetch("source", "select extract(epoch from told_until) from data_clock")
    known = "select extract(epoch from known_until) from online_state"
    until(lambda: stack.fetch("warehouse", known) == clock, seconds=120)
    assert int(stack.fetch("warehouse", _FOLLOWED)) == followed + 6
    until(stack.healthy, seconds=300)
    told = stack("exec", "-T", "scheduler", "python", "-m", "infra.doctor", "--running")
    assert "WRONG" not in told
    assert re.search(r"stream flights +knows all until .*slot flights", told.replace("\n", " "))


@pytest.mark.usefixtures("before")
def test_down_and_up_again_loses_nothing(stack: Composed) -> None:
    kept = stack.kept()  # the source's clock has gone on since `before`, and answers with it
    stack("down")
    stack("up", "--detach", "--wait")
    assert stack.kept() == kept


def facts_of_batch(stack: Composed) -> dict[str, str]:
    """What the loop came to, however fast it went."""
    return {name: facts for name, facts in stack.facts().items() if name not in _OF_THE_MACHINE}


@pytest.mark.usefixtures("replayed")
def test_two_workers_come_to_the_same(stack: Composed, tmp_path_factory: pytest.TempPathFactory) -> None:
    alone = facts_of_batch(stack)
    stack("stop")  # memory and processors for the other
    given = {"EXECUTOR": "CeleryExecutor", "COMPOSE_PROFILES": "celery"}
    with composed(f"{PROJECT}-celery", tmp_path_factory.mktemp("celery"), given) as spread:
        assert len(spread.services()["worker"]) == 2
        spread(*DEMO, "--weeks", "1")
        assert facts_of_batch(spread) == alone
        took_part = (
            "select count(distinct hostname) from task_instance where hostname <> '' and operator not like '%HITL%'"
        )
        assert spread.fetch("airflow", took_part) == "2"

        for name in ("redis", "worker"):
            kill(spread, name)
            until(spread.healthy, seconds=300)
        assert facts_of_batch(spread) == alone
        spread(*DEMO, "--weeks", "2")  # who returned takes tasks again
