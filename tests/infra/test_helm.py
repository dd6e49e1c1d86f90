"""Values for Airflow's chart: their rules, the pods that Helm makes of them, and that tasks find what compose gives."""

import copy
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra import settings as common
from pipeline.settings import REPOSITORY
from tests.infra.helm_rules import complaints, list_stream_complaints, missing

FILE = REPOSITORY / "infra" / "helm" / "values.yaml"
STREAM = REPOSITORY / "infra" / "helm" / "stream"
SECRET = common.read_assignments(REPOSITORY / "infra" / "helm" / "secret.env")
KNOWN = {*common.read_assignments(common.COMMON), *common.read_assignments(common.AIRFLOW), *SECRET}
# As the chart makes them of its values: its template of a pod, and what is mounted beside the scheduler.
TEMPLATES = """
cpu.yaml: |-
  {{- tpl .Values.podTemplate . | nindent 2 }}
{{- range .Values.extraConfigMaps }}
{{- tpl .data $ | nindent 0 }}
{{- end }}
"""
Values = dict[str, Any]
Pods = dict[str, Any]
SABOTAGE: dict[str, tuple[Callable[[Values], Any], str]] = {
    "executor": (lambda v: v.update(executor="LocalExecutor"), "the executor is LocalExecutor"),
    "latest": (lambda v: v.update(defaultAirflowTag="latest"), "the image's tag latest is no version"),
    "database": (lambda v: v["postgresql"].update(enabled=True), "postgresql comes with the chart"),
    "greedy": (
        lambda v: v["triggerer"]["resources"].pop("limits"),
        "triggerer asks for no processor and memory, or has no limit",
    ),
    "fernet": (lambda v: v.update(fernetKey="abc"), "fernetKey holds a secret"),
    "password": (lambda v: v["data"].update(metadataConnection={"pass": "x"}), "data holds a connection"),
    "key": (
        lambda v: v["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "AWS_SECRET_ACCESS_KEY is a secret",
    ),
}
POD_SABOTAGE: dict[str, tuple[str, str, str]] = {
    "root": ("runAsNonRoot: true", "runAsNonRoot: false", "may run as root"),
    "writes": ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "may write to its root file system"),
    "cluster": ("automountServiceAccountToken: false", "hostIPC: false", "has a key to the cluster"),
    "settings": ("env: {{ toJson .Values.env }}", "env: []", "has other variables than the servers"),
    "everywhere": ("{{- if .gpu }}", "{{- if true }}", "is for nodes with a GPU"),
    "nowhere": ("nvidia.com/gpu.present", "disk", "is not for nodes with a GPU"),
    "taint": ("tolerations: [{ key: nvidia.com/gpu,", "tolerations: [{ key: spot,", "is not for nodes with a GPU"),
}

STREAM_SABOTAGE: dict[str, tuple[str, str, str]] = {
    "twice": ("replicas: 1", "replicas: 2", "is there more than once"),
    "beside": ("type: Recreate", "type: RollingUpdate", "is there more than once"),
    "other": ("tasks.stream.follow", "tasks.score", "does not follow"),
    "unasked": ("livenessProbe:", "startupProbe:", "is not asked whether it lives"),
    "settings": ("env: {{ toJson .Values.env }}", "env: []", "has other variables than the servers"),
    "cluster": ("automountServiceAccountToken: false", "hostIPC: false", "has a key to the cluster"),
    "writes": ("toJson .Values.securityContexts.containers", "dict | toJson", "may write to its root file system"),
    "root": ("toJson .Values.securityContexts.pod", "dict | toJson", "may run as root"),
    "greedy": ("limits: { memory: 2Gi }", "limits: {}", "asks for no processor and memory, or has no limit"),
    "homeless": ("volumes: {{ toJson .Values.volumes }}", "volumes: []", "mounts what it has not"),
}


def template(chart: Path, values: Path) -> str:
    program = Path(sys.executable).parent / "helm"
    command = [program, "template", "windsock", chart, "--values", values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(folder: Path, text: str) -> Pods:
    """The pods of tasks, "cpu" and "gpu", of a text of values."""
    (folder / "templates").mkdir()
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: airflow, version: 0.0.0}")
    (folder / "templates" / "pods.yaml").write_text(TEMPLATES)
    (folder / "values.yaml").write_text(text)
    found = yaml.safe_load(template(folder, folder / "values.yaml"))
    return {name.removesuffix(".yaml"): yaml.safe_load(pod) for name, pod in found.items()}


@pytest.fixture(scope="module")
def values() -> Values:
    found: Values = yaml.safe_load(FILE.read_text())
    return found


@pytest.fixture(scope="module")
def pods(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Pods:
    return rendered(tmp_path_factory.mktemp("chart"), FILE.read_text())


def test_the_values_and_their_pods_keep_every_rule(values: Values, pods: Pods) -> None:
    assert pods.keys() == {"cpu", "gpu"}
    assert complaints(values, pods) == []


@pytest.mark.parametrize("fault", SABOTAGE)
def test_values_that_break_one_are_named(values: Values, pods: Pods, fault: str) -> None:
    plant, complaint = SABOTAGE[fault]
    broken = copy.deepcopy(values)
    plant(broken)
    assert complaint in complaints(broken, pods)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("fault", POD_SABOTAGE)
def test_a_pod_that_breaks_one_is_named(tmp_path: Path, fault: str) -> None:
    old, new, complaint = POD_SABOTAGE[fault]
    text = FILE.read_text()
    assert old in text
    broken = text.replace(old, new)
    found = complaints(yaml.safe_load(broken), rendered(tmp_path, broken))
    assert {one.partition(": ")[2] for one in found} == {complaint}


def test_a_task_is_given_all_that_it_has_under_compose(values: Values) -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text())
    wanted = set(compose["x-airflow"]["environment"])
    assert missing(values, KNOWN, wanted) == []
    assert missing(values, KNOWN - {"WINDSOCK_STUDIES_DSN"}, wanted) == ["WINDSOCK_STUDIES_DSN"]
    assert not any(SECRET.values()), "a secret in the repository"


def test_the_image_is_of_this_version_and_its_airflow(values: Values) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert values["defaultAirflowTag"] == project["version"]
    assert f"apache-airflow=={values['airflowVersion']}" in (REPOSITORY / "constraints.txt").read_text().splitlines()


def test_kubernetes_knows_every_key_of_the_pods(pods: Pods) -> None:
    from kubernetes.client import ApiClient

    def known(pod: Any) -> Any:
        return ApiClient().sanitize_for_serialization(ApiClient()._ApiClient__deserialize(pod, "V1Pod"))

    for pod in pods.values():
        assert known(pod) == pod
    misspelt = copy.deepcopy(pods["gpu"])
    misspelt["spec"]["toleration"] = misspelt["spec"].pop("tolerations")
    assert known(misspelt) != misspelt


def deploy_stream(chart: Path) -> Any:
    """What the command in values.yaml installs for the part `stream`."""
    return yaml.safe_load(template(chart, FILE))


@pytest.mark.usefixtures("processes")
def test_the_stream_is_deployed_with_the_values_of_airflow_and_keeps_every_rule(values: Values) -> None:
    from kubernetes.client import ApiClient

    deployment = deploy_stream(STREAM)
    assert list_stream_complaints(values, deployment) == []
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{values['defaultAirflowRepository']}:{values['defaultAirflowTag']}"
    known = ApiClient()._ApiClient__deserialize(deployment, "V1Deployment")
    assert ApiClient().sanitize_for_serialization(known) == deployment
    assert "infra/helm/stream --values infra/helm/values.yaml" in FILE.read_text()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("fault", STREAM_SABOTAGE)
def test_a_stream_that_breaks_one_is_named(values: Values, tmp_path: Path, fault: str) -> None:
    old, new, complaint = STREAM_SABOTAGE[fault]
    chart = Path(shutil.copytree(STREAM, tmp_path / "stream"))
    file = chart / "templates" / "deployment.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    assert any(one.startswith(complaint) for one in list_stream_complaints(values, deploy_stream(chart)))


def test_the_stream_has_all_that_it_has_under_compose(values: Values) -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text())
    assert missing(values, KNOWN, set(compose["services"]["stream"]["environment"])) == []
    assert missing(values, KNOWN - {"WEBHOOK_SECRET"}, {"WEBHOOK_SECRET"}) == ["WEBHOOK_SECRET"]


@pytest.mark.usefixtures("processes")
def test_the_chart_takes_the_values() -> None:
    """The chart brings a schema of its values, to which Helm holds them."""
    chart = os.environ.get("WINDSOCK_HELM_CHART")
    if not chart:
        pytest.skip("no package index has Airflow's chart: WINDSOCK_HELM_CHART names a folder or archive of it")
    kinds = {document["kind"] for document in yaml.safe_load_all(template(Path(chart), FILE)) if document}
    assert {"Deployment", "ConfigMap", "Job"} <= kinds
