"""What holds for every service of docker-compose.yaml; each broken rule in words."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from infra.settings import read_assignments
from pipeline.settings import REPOSITORY

Compose = dict[str, Any]
FILE = REPOSITORY / "docker-compose.yaml"
TEXT = FILE.read_text()
PARSED = json.dumps(yaml.safe_load(TEXT))  # what services share once for each
ACCOUNT = "10001:10001"
PAGES = {"api-server": "8080", "mlflow": "5000", "gateway": "8088", "grafana": "3000"}  # have ports, on loopback
ONCE, JOBS = "no", {"init", "demo"}  # the restart policy of what runs once, which has no health to check
SHARED = ("pid", "ipc", "uts", "userns_mode", "devices", "cgroup_parent")  # with the machine
SEEN = re.compile("(_PAGE|BASE_URL|ALLOWED_HOSTS)$")  # what a browser on this machine is told
LOOPBACK = {"127.0.0.1", "localhost"}
ADDRESS = re.compile(r"(?:@|//|^)(?!0\.0\.0\.0)([a-z0-9][\w.-]*):\d")
TASKS = {"scheduler", "worker"}  # the words by which Airflow is told to run tasks
SECRET = re.compile("(PASSWORD|SECRET|TOKEN|_AUTH|_KEY|DSN|CONN|BROKER_URL|RESULT_BACKEND|STORE_URI|ACCESS_KEY_ID)$")
KEPT = {  # where a part keeps what may not be lost
    "postgres": "/var/lib/postgresql/data",
    "storage": "/data",
    "redis": "/data",
    "prometheus": "/prometheus",
    "grafana": "/var/lib/grafana",
    "scheduler": "/var/lib/windsock",
    "torchserve": "/var/lib/windsock",
}
LITERAL = re.compile(r"://[^/@:]*:(?!\$\{)[^/@]*@")  # a password in an address
Service = Mapping[str, Any]


def parsed() -> Compose:
    """The file, for a test to change."""
    found: Compose = json.loads(PARSED)
    return found


def runner(compose: Compose) -> dict[str, str]:
    """The environment of a task, as compose makes it."""
    service = compose["services"]["scheduler"]
    files = [read_assignments(REPOSITORY / name) for name in service["env_file"]]
    given = {name: re.sub(r"\$\{[^}]*\}", "x", str(value)) for name, value in service["environment"].items()}
    return {name: value for part in (*files, given) for name, value in part.items()}


def complaints(compose: Mapping[str, Any]) -> list[str]:
    """Every rule that a compose file breaks."""
    services: Mapping[str, Service] = compose["services"]
    built = {service["image"] for service in services.values() if "build" in service}
    found = [f"{name}: {text}" for name, service in services.items() for text in _about(service, built)]
    found += [f"{name}: {text}" for name, service in services.items() for text in _ports(name, service)]
    found += [f"{name}: {text}" for name, service in services.items() for text in _returns(name, service)]
    found += [f"{name}: {text}" for name, service in services.items() for text in _addresses(services, service)]
    found += [f"network {name} leads outside" for name in _open(compose["networks"]) if name != "front"]
    return found + _volumes(compose)


def _about(service: Service, built: set[str]) -> Iterator[str]:
    yield from _rights(service)
    yield from _limits(service)
    if service["image"] not in built and not re.search(r":v?\d[\w.-]*$", service["image"]):
        yield f"{service['image']} is not pinned"
    for name, needed in service.get("depends_on", {}).items():
        if needed["condition"] not in ("service_healthy", "service_completed_successfully"):
            yield f"does not wait until {name} is well"
    for name, value in service.get("environment", {}).items():
        if SECRET.search(name) and (LITERAL.search(str(value)) or not _is_given(str(value))):
            yield f"{name} has a value of its own"


def _rights(service: Service) -> Iterator[str]:
    if service.get("user") != ACCOUNT:
        yield "may run as root"
    if service.get("cap_drop") != ["ALL"] or "cap_add" in service or service.get("privileged"):
        yield "has capabilities"
    if service.get("security_opt") != ["no-new-privileges:true"]:
        yield "may gain privileges"
    if not service.get("read_only"):
        yield "may write to its root file system"
    for shared in SHARED:
        if shared in service:
            yield f"shares {shared} with the machine"
    if service.get("network_mode", "none") != "none":
        yield f"is on the network {service['network_mode']}"


def _limits(service: Service) -> Iterator[str]:
    for limit in ("mem_limit", "pids_limit"):
        if limit not in service:
            yield f"has no {limit}"
    if not {"max-size", "max-file"} <= service.get("logging", {}).get("options", {}).keys():
        yield "has no limit to its log"
    if not service.get("init"):
        yield "keeps its dead children"


def _returns(name: str, service: Service) -> Iterator[str]:
    """Who ends comes back, to what it had, and says how it is by a check of its own."""
    if service.get("restart") != (ONCE if name in JOBS else "unless-stopped"):
        yield "does not return" if name not in JOBS else "runs again and again"
    check = service.get("healthcheck", {})
    words = [str(word) for word in check.get("test", ["NONE"])]
    if name not in JOBS and (words[0] == "NONE" or check.get("disable") or words[1:] in (["true"], ["exit 0"])):
        yield "has no health check"
    if "||" in " ".join(words):
        yield "its health check cannot fail"
    if "infra.compose.health" in words and words[-1] not in service["command"]:
        yield f"its health check is that of {words[-1]}"
    own = ("/tmp", *(volume.split(":")[1] for volume in service.get("volumes", ())))  # noqa: S108  # the container's
    if name in KEPT and KEPT[name] not in own:
        yield f"does not keep {KEPT[name]}"
    for variable, value in service.get("environment", {}).items():
        if str(value).startswith("/var/") and not str(value).startswith(own):
            yield f"{variable} is a folder that it does not keep"
    if name not in JOBS and "postgres:5432" in str(service.get("environment")) and "init" not in service["depends_on"]:
        yield "does not wait until there are tables"


def _addresses(services: Mapping[str, Service], service: Service) -> Iterator[str]:
    """What a service is told of others leads to one, and what tasks are told to one on a network of theirs."""
    anywhere = not TASKS & {str(word) for word in service.get("command", ())}
    found = {
        host
        for name, other in services.items()
        for network in other.get("networks", ())
        if anywhere or network in service["networks"]
        for host in _names(name, other["networks"], network)
    }
    for name, value in service.get("environment", {}).items():
        told = set(ADDRESS.findall(re.sub(r"\$\{[^}]*\}", "x", str(value))))
        for host in sorted(told - found - (LOOPBACK if SEEN.search(name) else set())):
            yield f"{name} leads to {host}, which is nobody it reaches"


def _names(service: str, networks: Any, network: str) -> set[str]:
    """By which names a service is found on a network."""
    return {service, *((networks[network] or {}).get("aliases", ()) if isinstance(networks, Mapping) else ())}


def _is_given(value: str) -> bool:
    """Whether a secret comes from .env, and has no default: only what is not ours may be empty."""
    return bool(re.search(r"\$\{([A-Z0-9_]+(:\?[^}]*)?|(?!SECRET_)[A-Z0-9_]+:-)\}", value))


def _ports(name: str, service: Service) -> Iterator[str]:
    for port in service.get("ports", ()):
        if not str(port).startswith("127.0.0.1:"):
            yield f"{port} is open to others than this machine"
    open_ports = [str(port).rpartition(":")[2] for port in service.get("ports", ())]
    if open_ports != ([PAGES[name]] if name in PAGES else []):
        yield f"has the ports {open_ports}"


def _open(networks: Mapping[str, Any]) -> list[str]:
    return [name for name, options in networks.items() if not options.get("internal")]


def _volumes(compose: Mapping[str, Any]) -> list[str]:
    """What is mounted is a named volume, or a file of this repository that cannot be written."""
    named: set[str] = set(compose["volumes"])
    mounted = [(name, volume) for name, service in compose["services"].items() for volume in service.get("volumes", ())]
    unused = named - {volume.split(":")[0] for _, volume in mounted}
    return [f"volume {name} keeps nothing" for name in sorted(unused)] + [
        f"{name}: {volume} is neither a named volume nor a read-only file of ours"
        for name, volume in mounted
        if volume.split(":")[0] not in named and not (volume.startswith("./") and volume.endswith(":ro"))
    ]
