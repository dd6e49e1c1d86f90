"""What holds for every service of docker-compose.yaml; each broken rule in words."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

ACCOUNT = "10001:10001"
PAGES = {"api-server", "mlflow", "gateway", "grafana"}  # who has a port, on loopback
ONCE = "no"  # the restart policy of what runs once: it has no health to check
SECRET = re.compile("(PASSWORD|SECRET|TOKEN|_AUTH|_KEY|DSN|CONN|BROKER_URL|RESULT_BACKEND|STORE_URI|ACCESS_KEY_ID)$")
Service = Mapping[str, Any]


def complaints(compose: Mapping[str, Any]) -> list[str]:
    """Every rule that a compose file breaks."""
    services: Mapping[str, Service] = compose["services"]
    built = {service["image"] for service in services.values() if "build" in service}
    found = [f"{name}: {text}" for name, service in services.items() for text in _about(service, built)]
    found += [f"{name}: {text}" for name, service in services.items() for text in _ports(name, service)]
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
        if SECRET.search(name) and not _is_given(str(value)):
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
    if service.get("network_mode", "none") != "none":
        yield f"is on the network {service['network_mode']}"


def _limits(service: Service) -> Iterator[str]:
    for limit in ("mem_limit", "pids_limit"):
        if limit not in service:
            yield f"has no {limit}"
    if not {"max-size", "max-file"} <= service.get("logging", {}).get("options", {}).keys():
        yield "has no limit to its log"
    if service.get("restart") != ONCE and not service.get("healthcheck", {}).get("test"):
        yield "has no health check"


def _is_given(value: str) -> bool:
    """Whether a secret comes from .env, and has no default: only what is optional may be empty."""
    return bool(re.search(r"\$\{[A-Z0-9_]+(:\?[^}]*|:-)?\}", value))


def _ports(name: str, service: Service) -> Iterator[str]:
    for port in service.get("ports", ()):
        if not str(port).startswith("127.0.0.1:"):
            yield f"{port} is open to others than this machine"
    if ("ports" in service) != (name in PAGES):
        yield "has a port" if "ports" in service else "has no port"


def _open(networks: Mapping[str, Any]) -> list[str]:
    return [name for name, options in networks.items() if not options.get("internal")]


def _volumes(compose: Mapping[str, Any]) -> list[str]:
    """What is mounted is a named volume, or a file of this repository that cannot be written."""
    named = compose["volumes"].keys()
    mounted = [(name, volume) for name, service in compose["services"].items() for volume in service.get("volumes", ())]
    return [
        f"{name}: {volume} is neither a named volume nor a read-only file of ours"
        for name, volume in mounted
        if volume.split(":")[0] not in named and not (volume.startswith("./") and volume.endswith(":ro"))
    ]
