"""The contenders: what is started, where it is asked, and with which bodies."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contenders import export
from benchmarks.world import VERSION, World
from infra.local.ports import find_free_port
from pipeline.settings import REPOSITORY
from serving.predictor import Predictor

START_SECONDS = 90
COMPARED = 200  # answers that are compared with the predictor's before anything is measured
TOLERANCE = 1e-5
DATABASE = "postgres"  # works for ours, too, but its memory is mostly shared


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A server that answers one event a request."""

    name: str
    url: str
    bodies: Path
    processes: Mapping[str, int]  # the roots of what works for it
    key: str | None = None

    def ask(self, body: str) -> Any:
        """One answer."""
        host, _, path = self.url.removeprefix("http://").partition("/")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        with contextlib.closing(http.client.HTTPConnection(host, timeout=10)) as connection:
            connection.request("POST", f"/{path}", body, headers)
            answer = connection.getresponse()
            document = json.load(answer)
            if answer.status != 200:
                raise ValueError(f"{self.name} answered {answer.status}: {document}")
            return document

    def memory_mb(self) -> float:
        """Resident memory of the process trees, in which a page shared by two counts twice."""
        return sum(process.memory_info().rss for name, process in self._everybody() if name != DATABASE) / 1e6

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time so far, by part; what a part has started counts on its own."""
        spent: dict[str, float] = {}
        for name, process in self._everybody():
            times = process.cpu_times()
            spent[name] = spent.get(name, 0.0) + times.user + times.system
        return spent

    def _everybody(self) -> Iterator[tuple[str, psutil.Process]]:
        for name, pid in self.processes.items():
            root = psutil.Process(pid)
            yield name, root
            for child in root.children(recursive=True):
                yield (name if name == DATABASE else f"{name} worker"), child


def probability(answer: Any) -> float:
    """The number in any contender's answer."""
    return float(answer["predictions"][0] if "predictions" in answer else answer["probability"])


def check(contender: Contender, expected: Sequence[float]) -> float:
    """The largest difference to the predictor's answers.

    Raises:
        ValueError: it answers something else, so that its speed says nothing.
    """
    bodies = contender.bodies.read_text().splitlines()[:COMPARED]
    answers = [contender.ask(body) for body in bodies]
    if degraded := sum(bool(answer.get("degraded")) for answer in answers):
        print(f"{contender.name}: {degraded} of {len(answers)} answers are degraded", flush=True)
    worst = max(abs(probability(answer) - right) for answer, right in zip(answers, expected, strict=False))
    if worst > TOLERANCE:
        raise ValueError(f"{contender.name} differs from the predictor by {worst:.2e}")
    return worst


@contextmanager
def all_of(world: World, folder: Path) -> Iterator[list[Contender]]:
    """Every contender, started and answering."""
    folder.mkdir(parents=True, exist_ok=True)
    predictor = Predictor.load(world.bundle)
    rows = _rows(world, predictor)
    columns = list(predictor.columns)
    events = write_events(world, folder / "events")
    objects = _lines(folder / "features", [json.dumps(row) for row in rows])
    frames = [{"dataframe_split": {"columns": columns, "data": [[row[name] for name in columns]]}} for row in rows]
    splits = _lines(folder / "splits", [json.dumps(frame) for frame in frames])
    export.to_onnx(world.bundle, folder / "onnx")
    export.to_mlflow(world.bundle, folder / "mlflow", world.points, signed=True)
    export.to_mlflow(world.bundle, folder / "mlflow-unsigned", world.points, signed=False)
    environment = {"BENCHMARK_BUNDLE": str(world.bundle), "BENCHMARK_ONNX": str(folder / "onnx")}
    with ExitStack() as running:

        def begin(name: str, path: str, bodies: Path, *command: str) -> Contender:
            port = find_free_port(set())
            line = [word.replace("PORT", str(port)) for word in command]
            pid = running.enter_context(_running(line, environment, folder / f"{name.replace(' ', '-')}.log"))
            return Contender(name=name, url=f"http://127.0.0.1:{port}{path}", bodies=bodies, processes={name: pid})

        uvicorn = (sys.executable, "-m", "uvicorn", "--port", "PORT", "--no-access-log", "--log-level", "warning")
        contenders = [
            *_ours(world, events),
            begin("FastAPI", "/predict", objects, *uvicorn, "benchmarks.contenders.fastapi_app:app"),
            begin("mlflow serve", "/invocations", splits, *_mlflow(folder / "mlflow")),
            begin("mlflow, no signature", "/invocations", splits, *_mlflow(folder / "mlflow-unsigned")),
            begin("ONNX batching", "/", objects, *uvicorn, "benchmarks.contenders.onnx_app:app"),
        ]
        for contender in contenders:
            _await(contender)
        yield contenders


def write_events(world: World, path: Path) -> Path:
    """The events as clients send them, one a line."""
    return _lines(path, [json.dumps(event) for event in world.events])


def _ours(world: World, events: Path) -> list[Contender]:
    world.register(VERSION)
    world.send_everybody_to(VERSION)
    settings, name = world.outside.settings, world.use_case.name
    pids = {row.part: row.pid for row in world.stack.status() if row.pid is not None}
    behind = {part: pids[part] for part in ("torchserve", "shipper", DATABASE)}
    return [
        Contender(
            name="ours",
            url=f"{settings.gateway_url}/v1/{name}/predict",
            bodies=events,
            processes={"gateway": pids["gateway"], **behind},
            key=settings.gateway_key,
        ),
        Contender(
            name="TorchServe alone",
            url=f"{settings.inference_url}/predictions/{name}/{VERSION}",
            bodies=events,
            processes=behind,
        ),
    ]


def _mlflow(model: Path) -> tuple[str, ...]:
    program = str(Path(sys.executable).with_name("mlflow"))
    return (program, "models", "serve", "-m", str(model), "-p", "PORT", "-h", "127.0.0.1", "--env-manager", "local")


def _rows(world: World, predictor: Predictor) -> list[dict[str, Any]]:
    """The events' features as JSON has them: numbers or null, texts or null."""
    frame: Any = export.as_frame(world.points, predictor)
    return [
        {name: None if value != value or value is None else value for name, value in row.items()}  # noqa: PLR0124  # NaN
        for row in frame.to_dict("records")
    ]


def _lines(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@contextmanager
def _running(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[int]:
    surroundings = {**os.environ, **environment, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with log.open("wb") as sink:
        started = subprocess.Popen(
            command,
            env={**surroundings, "PATH": path},
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            cwd=REPOSITORY,
        )
    process = psutil.Process(started.pid)
    try:
        yield started.pid
    finally:
        everybody = [process, *process.children(recursive=True)] if process.is_running() else []
        for one in everybody:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        _, left = psutil.wait_procs(everybody, timeout=10)
        for one in left:
            one.kill()
        started.wait()


def _await(contender: Contender) -> None:
    body = contender.bodies.read_text().partition("\n")[0]
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            contender.ask(body)
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)  # it is starting; there is nothing else to wait on
        else:
            return
