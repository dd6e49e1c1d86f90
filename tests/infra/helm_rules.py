"""What holds for infra/helm/values.yaml and the pods that Helm makes of it; each broken rule in words."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.infra.compose_rules import SECRET

ACCOUNT = 10001
GPU = "nvidia.com/gpu"
SERVERS = ("scheduler", "apiServer", "dagProcessor", "triggerer", "migrateDatabaseJob", "statsd")
SOURCES = [{"configMapRef": {"name": "windsock-settings"}}, {"secretRef": {"name": "windsock"}}]
# What the chart sets by itself, from values that say the same in other words.
CHART = re.compile(
    "AIRFLOW__(CORE__(EXECUTOR|DAGS_FOLDER|FERNET_KEY|EXECUTION_API_SERVER_URL)|DATABASE__SQL_ALCHEMY_CONN|CELERY__.*"
    "|API__(HOST|PORT|SECRET_KEY)|API_AUTH__JWT_SECRET|METRICS__STATSD_(ON|HOST|PORT|PREFIX))$"
)
_KEYS = ("fernetKey", "apiSecretKey", "jwtSecret", "extraSecrets", "secret")
Values = Mapping[str, Any]


def complaints(values: Values, pods: Mapping[str, Any]) -> list[str]:
    """Every rule that the values, or the pods of a task ("cpu", "gpu") that are made of them, break."""
    found = [*_parts(values), *_secrets(values)]
    found += [f"{name}: {text}" for name, pod in pods.items() for text in _pod(values, pod)]
    return found + [f"{name}: {text}" for name, pod in pods.items() for text in _nodes(name, pod)]


def list_stream_complaints(values: Values, deployment: Any) -> list[str]:
    """Every rule that the deployment of the part `stream` breaks."""
    spec = deployment["spec"]["template"]["spec"]
    [container] = spec["containers"]
    return [*_rights(spec), *_settings(values, spec), *_needs(spec), *_following(deployment, container)]


def _following(deployment: Any, container: Any) -> Iterator[str]:
    if (deployment["spec"]["replicas"], deployment["spec"]["strategy"]["type"]) != (1, "Recreate"):
        yield "is there more than once"
    if container["command"] != ["python", "-m", "tasks.stream.follow"]:
        yield "does not follow"
    if "is_held" not in str(container.get("livenessProbe", {}).get("exec")):
        yield "is not asked whether it lives"
    if deployment["spec"]["selector"]["matchLabels"] != deployment["spec"]["template"]["metadata"]["labels"]:
        yield "does not find its pods"


def missing(values: Values, known: set[str], wanted: set[str]) -> list[str]:
    """The names that are wanted, and that neither the values nor the chart give, nor is among those known."""
    given = {variable["name"] for variable in values["env"]} | known
    return sorted(name for name in wanted - given if not CHART.match(name))


def _parts(values: Values) -> Iterator[str]:
    if values["executor"] != "KubernetesExecutor":
        yield f"the executor is {values['executor']}"
    if not re.fullmatch(r"\d+\.\d+\.\d+|[0-9a-f]{7,40}", str(values["defaultAirflowTag"])):
        yield f"the image's tag {values['defaultAirflowTag']} is no version"
    yield from (f"{name} comes with the chart" for name in ("postgresql", "redis") if values[name]["enabled"])
    for name in SERVERS:
        resources = values.get(name, {}).get("resources", {})
        if not {"cpu", "memory"} <= resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
            yield f"{name} asks for no processor and memory, or has no limit"


def _secrets(values: Values) -> Iterator[str]:
    yield from (f"{name} holds a secret" for name in _KEYS if values.get(name))
    if values["data"].keys() != {"metadataSecretName"}:
        yield "data holds a connection"
    yield from (f"{one['name']} is a secret" for one in values["env"] if SECRET.search(one["name"]))


def _pod(values: Values, pod: Any) -> Iterator[str]:
    spec = pod["spec"]
    [container] = spec["containers"]
    yield from _rights(spec)
    yield from _settings(values, spec)
    if container["name"] != "base" or spec["restartPolicy"] != "Never":
        yield "is not as the executor expects it"


def _rights(spec: Any) -> Iterator[str]:
    [container] = spec["containers"]
    rights = spec["securityContext"]
    if not rights.get("runAsNonRoot") or rights.get("runAsUser") != ACCOUNT:
        yield "may run as root"
    own = container["securityContext"]
    if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
        yield "has capabilities, or may gain privileges"
    if not own.get("readOnlyRootFilesystem"):
        yield "may write to its root file system"
    if spec.get("automountServiceAccountToken") is not False:
        yield "has a key to the cluster"


def _settings(values: Values, spec: Any) -> Iterator[str]:
    [container] = spec["containers"]
    if container["envFrom"] != SOURCES or container["env"] != values["env"]:
        yield "has other variables than the servers"
    if {mount["name"] for mount in container["volumeMounts"]} != {volume["name"] for volume in spec["volumes"]}:
        yield "mounts what it has not, or has what it does not mount"


def _needs(spec: Any) -> Iterator[str]:
    resources = spec["containers"][0]["resources"]
    if not {"cpu", "memory"} <= resources["requests"].keys() or "memory" not in resources["limits"]:
        yield "asks for no processor and memory, or has no limit"


def _nodes(name: str, pod: Any) -> Iterator[str]:
    spec = pod["spec"]
    yield from _needs(spec)
    resources = spec["containers"][0]["resources"]
    tolerated = GPU in [toleration["key"] for toleration in spec.get("tolerations", ())]
    selected = any(label.startswith(GPU) for label in spec.get("nodeSelector", ()))
    wanted = name == "gpu"
    if {GPU in resources["limits"], tolerated, selected} != {wanted}:
        yield "is not for nodes with a GPU" if wanted else "is for nodes with a GPU"
