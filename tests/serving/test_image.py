"""What is written about the image holds; with an engine (`make test-image`), the image does too."""

import ast
import contextlib
import http.client
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.model_store import ModelStore
from adapters.warehouse import Warehouse
from infra.local import postgres
from infra.local.ports import find_free_port
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY, Settings
from tests.infra.test_images import instructions, lines
from tests.serving.online import EVENT, OPTIONS, make_bundle
from tests.waiting import until

DOCKERFILE = REPOSITORY / "serving" / "Dockerfile"
PACKAGES = ("features", "models", "serving")
WHEELS = {"psycopg2": "psycopg2-binary", "yaml": "pyyaml", "ts": "torchserve"}
OFFLINE = {REPOSITORY / "features" / name for name in ("spark.py", "spark_sql.py")}  # an engine of its own extra
UNSEEN = {"psutil", "pyyaml", "torchserve"}  # TorchServe itself, and what it imports without saying so


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_only_three_packages_go_in() -> None:
    copied = [rest for word, rest in instructions(DOCKERFILE) if word in ("COPY", "ADD")]
    sources = {source for rest in copied for source in rest.split()[:-1] if not source.startswith("--from=")}
    assert sources == {*PACKAGES, "constraints.txt", "serving/requirements.txt", "build/wheel[s]/*.whl", "/opt/venv"}


@pytest.mark.usefixtures("processes")
def test_what_the_three_packages_import_is_in_the_image_and_nothing_besides() -> None:
    served = {path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")} - OFFLINE
    wanted = {name for path in served for name in imported(path)}
    wanted -= {*sys.stdlib_module_names, *PACKAGES}
    held = set(lines(REPOSITORY / "serving" / "requirements.txt"))
    assert {WHEELS.get(name, name) for name in wanted} | UNSEEN == held


@pytest.mark.usefixtures("processes")
def test_the_health_check_needs_the_standard_library_only() -> None:
    bare = [sys.executable, "-S", "-c"]  # without the installed packages
    assert not subprocess.run([*bare, "import serving.health"], cwd=REPOSITORY, check=False).returncode
    assert subprocess.run(
        [*bare, "import serving.lookup"], cwd=REPOSITORY, stderr=subprocess.DEVNULL, check=False
    ).returncode


# With an engine.

IMAGE = "windsock-serving-test"
HARDENED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"docker {arguments[0]}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def logs(container: str) -> str:
    done = subprocess.run(["docker", "logs", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def image(processes: None) -> str:
    if not os.environ.get("WINDSOCK_TEST_IMAGE"):
        pytest.skip("builds an image of a gigabyte: `make test-image` runs this")
    try:
        docker("info")
    except (OSError, AssertionError):
        pytest.skip("there is no Docker engine here")
    subprocess.run(["make", "image", f"IMAGE={IMAGE}"], cwd=REPOSITORY, check=True, capture_output=True)
    return IMAGE


@dataclass(frozen=True)
class Served:
    url: str
    container: str
    store: Path

    def ask(self, request_id: str) -> dict[str, object]:
        headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", "/predictions/flights/1", json.dumps(EVENT), headers)
            found: dict[str, object] = json.load(connection.getresponse())
            return found

    def healthy(self) -> bool:
        command = ["docker", "exec", self.container, "python", "-m", "serving.health"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def served(image: str, stack: Stack, settings: Settings, tmp_path: Path) -> Iterator[Served]:
    """The server and the shipper, each a container of the image, on one volume; one model is deployed."""
    state, ports = tmp_path / "state", set[int]()
    store = deployed(state)
    while len(ports) < 3:
        ports.add(find_free_port(ports))
    inference, management, metrics = (f"http://127.0.0.1:{port}" for port in ports)
    home = stack.home()
    database = settings.warehouse_dsn.rsplit("/", 1)[1]
    dsn = postgres.postgres_dsn(home.ports["postgres"], database, "online", home.secrets["online"])
    with Warehouse(settings.warehouse_dsn).transaction() as at:
        at.execute(f"grant connect on database {database} to online")  # a copied database loses who may connect
    shared = [*HARDENED, "--network=host", f"--volume={state}:/var/lib/windsock", f"--env=WINDSOCK_ONLINE_DSN={dsn}"]
    shared += ["--detach"]
    binds = {"INFERENCE": inference, "MANAGEMENT": management, "METRICS": metrics}
    addresses = [f"--env=WINDSOCK_{name}_BIND={url}" for name, url in binds.items()]
    names = [f"windsock-{what}-{uuid.uuid4().hex[:8]}" for what in ("server", "shipper")]
    try:
        docker("run", *shared, *addresses, f"--name={names[0]}", image)
        docker("run", *shared, "--no-healthcheck", f"--name={names[1]}", image, "python", "-m", "serving.shipper")
        served = Served(inference, names[0], store)
        until(served.healthy)
        yield served
    finally:
        print("\n".join(logs(name) for name in names))
        docker("rm", "--force", "--volumes", *names, check=False)


def deployed(state: Path) -> Path:
    """A volume's content, as a deployment leaves it."""
    store, bundle = state / "store", state.parent / "bundle"
    for folder in (store, state / "spool", state / "work"):
        folder.mkdir(parents=True)
    sha256 = make_bundle(bundle)
    archive = ModelStore(store).archive(bundle, use_case="flights", version="1", bundle_sha256=sha256, options=OPTIONS)
    entry = {"use_case": "flights", "version": "1", "file": archive.path.name, "sha256": archive.sha256}
    entry |= {"batch_size": 64, "max_batch_delay_ms": 1, "workers": 1, "default": True}
    (store / "deployed.json").write_text(json.dumps({"versions": [entry]}))
    for path in (state, *state.rglob("*")):
        path.chmod(0o777)  # the container's user is another one
    return store


@pytest.mark.image
def test_a_hardened_container_answers_and_its_answers_reach_the_warehouse(served: Served, settings: Settings) -> None:
    answer = served.ask("from-the-image")
    assert 0 < float(str(answer["probability"])) < 1
    asked = "select model_version, client from online_answers where request_id = %s"
    warehouse = Warehouse(settings.warehouse_dsn)
    until(lambda: warehouse.query(asked, ("from-the-image",)) == [{"model_version": "1", "client": "direct"}], 20)
    until(lambda: docker("inspect", "--format={{.State.Health.Status}}", served.container) == "healthy")
    # By its own check it asked many times; the warehouse was told once.
    assert len(warehouse.query("select 1 from online_answers where client = 'health'")) == 1


@pytest.mark.image
def test_it_may_write_nowhere_but_its_volume_and_is_nobody(served: Served) -> None:
    assert docker("exec", served.container, "id", "-u") == "10001"
    for path in ("/app/serving/x", "/opt/venv/x", "/etc/x"):
        assert (
            "Read-only"
            in subprocess.run(
                ["docker", "exec", served.container, "touch", path], capture_output=True, text=True, check=False
            ).stderr
        )
    docker("exec", served.container, "touch", "/var/lib/windsock/x")


@pytest.mark.image
def test_a_tampered_archive_is_not_served_and_the_container_is_not_healthy(served: Served) -> None:
    [archive] = served.store.glob("*.mar")
    archive.write_bytes(archive.read_bytes() + b"x")
    docker("restart", served.container)
    until(
        lambda: (
            "NOT LOADED: flights 1"
            in subprocess.run(["docker", "logs", served.container], capture_output=True, text=True, check=True).stderr
        )
    )
    assert not served.healthy()


@pytest.mark.usefixtures("processes")
@pytest.mark.image
def test_it_adds_little_more_than_a_gigabyte_to_its_base(image: str) -> None:
    base = next(rest.split()[0] for word, rest in instructions(DOCKERFILE) if word == "FROM")
    sizes = [int(docker("image", "inspect", "--format={{.Size}}", name)) for name in (image, base)]
    assert sizes[0] - sizes[1] < 1_250_000_000
