"""MLflow: what was trained, from what, and how it went; model versions, their bundles, and the champion's aliases."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlflow.artifacts
import requests
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from adapters.errors import Corrupt, Missing, Unavailable

CHAMPION, PREVIOUS = "champion", "previous_champion"
_KEY_TAG = "windsock.key"  # what makes a piece of training work the same piece, whoever retries it
_SHA256_TAG = "windsock.bundle_sha256"
_LONGEST_TAG, _LONGEST_PARAM = 8000, 6000  # characters: longer ones the server refuses, and with them the run
_WHOLE = "long_values.json"  # the artifact that holds what was cut
_METRICS_PER_REQUEST = 900  # the server takes 1000
_CLIENT = {  # the defaults wait 120 s and try 7 more times: longer than a task may hang
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What one training run leaves behind. `key` names the piece of work: it is registered once."""

    use_case: str
    key: str
    name: str
    dataset_version: str
    params: Mapping[str, str | float]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Sequence[float]]  # one value per epoch, from 1
    artifacts: Path  # a folder, uploaded as it is; its bundle/ is the model
    bundle_sha256: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """One registered model version."""

    use_case: str
    version: str
    run_id: str
    bundle_uri: str
    bundle_sha256: str
    tags: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Registry:
    """An MLflow server; the registered model of a use case has the use case's name."""

    tracking_uri: str
    cache: Path

    @cached_property
    def _client(self) -> MlflowClient:
        for name, value in _CLIENT.items():
            os.environ.setdefault(name, value)
        return MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def log_run(self, record: RunRecord) -> str:
        """Record a finished run with all it left behind; its id. A half-recorded earlier try is marked as failed."""
        if not (record.artifacts / "bundle").is_dir():  # the client would upload nothing, and say nothing
            raise FileNotFoundError(f"{record.artifacts} holds no bundle folder")
        with _reaching(self.tracking_uri):
            tags = {**record.tags, _KEY_TAG: record.key, _SHA256_TAG: record.bundle_sha256}
            params = {name: str(value) for name, value in record.params.items()}
            experiment_id = self._experiment(record.use_case)
            self._fail_unfinished(experiment_id, record.key)
            run_id: str = self._client.create_run(
                experiment_id,
                tags={name: _cut(value, _LONGEST_TAG) for name, value in tags.items()},
                run_name=record.name,
            ).info.run_id
            self._client.log_inputs(run_id, datasets=[_dataset(record)])
            metrics = [
                *(Metric(name, value, 0, 0) for name, value in record.metrics.items()),
                *(
                    Metric(name, value, 0, epoch)
                    for name, values in record.curves.items()
                    for epoch, value in enumerate(values, start=1)
                ),
            ]
            self._client.log_batch(
                run_id, params=[Param(name, _cut(value, _LONGEST_PARAM)) for name, value in params.items()]
            )
            long = {name: value for name, value in tags.items() if len(value) > _LONGEST_TAG}
            long |= {name: value for name, value in params.items() if len(value) > _LONGEST_PARAM}
            if long:
                self._client.log_dict(run_id, long, _WHOLE)
            for start in range(0, len(metrics), _METRICS_PER_REQUEST):
                self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_REQUEST])
            self._client.log_artifacts(run_id, str(record.artifacts))
            self._client.set_terminated(run_id, "FINISHED")
        return run_id

    def register(self, use_case: str, run_id: str) -> Version:
        """The model version of a recorded run, created if this piece of work has none yet."""
        with _reaching(self.tracking_uri):
            tags = dict(self._client.get_run(run_id).data.tags)
            if (found := self.find(use_case, tags[_KEY_TAG])) is not None:
                return found
            with _made_once():
                self._client.create_registered_model(use_case)
            return _version(
                self._client.create_model_version(
                    use_case,
                    source=f"runs:/{run_id}/bundle",
                    run_id=run_id,
                    tags={name: value for name, value in tags.items() if not name.startswith("mlflow.")},
                    await_creation_for=0,
                )
            )

    def find(self, use_case: str, key: str) -> Version | None:
        """The model version that a piece of training work already registered."""
        with _reaching(self.tracking_uri):
            found = self._client.search_model_versions(f"name = '{use_case}' and tags.`{_KEY_TAG}` = '{key}'")
        return _version(min(found, key=lambda v: int(v.version))) if found else None

    def version(self, use_case: str, model_version: str) -> Version:
        """A model version by number.

        Raises:
            Missing: there is none.
        """
        with _reaching(self.tracking_uri, f"{use_case} has no model version {model_version!r}"):
            return _version(self._client.get_model_version(use_case, model_version))

    def metrics(self, use_case: str, model_version: str) -> dict[str, float]:
        """The metrics recorded by a model version's run."""
        with _reaching(self.tracking_uri):
            return dict(self._client.get_run(self.version(use_case, model_version).run_id).data.metrics)

    def download_bundle(self, use_case: str, model_version: str) -> Path:
        """A model version's bundle folder, verified, in the content-addressed cache.

        Raises:
            Missing: there is no such version, or nothing was stored for it.
            Corrupt: the stored bundle is not the one that was registered.
        """
        version = self.version(use_case, model_version)
        folder = self.cache / "bundles" / version.bundle_sha256
        if folder.is_dir() and folder_sha256(folder) == version.bundle_sha256:
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            fetched = self._fetch(version.run_id, "bundle", Path(scratch))
            if (found := folder_sha256(fetched)) != version.bundle_sha256:
                raise Corrupt(f"{version.bundle_uri} has the digest {found}, registered was {version.bundle_sha256}")
            shutil.rmtree(folder, ignore_errors=True)  # a damaged cache entry
            try:
                fetched.rename(folder)
            except OSError:
                if not folder.is_dir():  # someone else put the very same content there first
                    raise
        return folder

    def profile(self, use_case: str, model_version: str) -> dict[str, Any]:
        """The reference profile monitoring compares with, as recorded at training."""
        run_id = self.version(use_case, model_version).run_id
        with tempfile.TemporaryDirectory() as scratch:
            return dict(json.loads(self._fetch(run_id, "monitoring/profile.json", Path(scratch)).read_text()))

    def set_aliases(self, use_case: str, champion: str, previous: str | None) -> None:
        """Mirror who serves into the aliases `champion` and `previous_champion`, and read them back.

        MLflow lets the last writer win, so callers hold the promotion lock.
        """
        with _reaching(self.tracking_uri):
            self._client.set_registered_model_alias(use_case, CHAMPION, champion)
            if previous is not None:
                self._client.set_registered_model_alias(use_case, PREVIOUS, previous)
            elif PREVIOUS in self.aliases(use_case):
                self._client.delete_registered_model_alias(use_case, PREVIOUS)
        wanted = {CHAMPION: champion, **({PREVIOUS: previous} if previous is not None else {})}
        if (found := self.aliases(use_case)) != wanted:
            raise Unavailable(f"{use_case}: aliases were set to {wanted} but read back as {found}")

    def aliases(self, use_case: str) -> dict[str, str]:
        """Alias -> model version, of the two aliases we keep; empty when the model is not registered."""
        try:
            with _reaching(self.tracking_uri):
                found = self._client.get_registered_model(use_case).aliases
        except Missing:
            return {}
        return {name: str(found[name]) for name in (CHAMPION, PREVIOUS) if name in found}

    def _fetch(self, run_id: str, path: str, target: Path) -> Path:
        uri = self._client.tracking_uri  # the client, and with it its limits, comes first
        with _reaching(self.tracking_uri):
            try:
                return Path(
                    mlflow.artifacts.download_artifacts(
                        run_id=run_id, artifact_path=path, dst_path=str(target), tracking_uri=uri
                    )
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                # The client says so of whatever went wrong, a store that is down included. A listing tells them apart.
                listed = self._client.list_artifacts(run_id, str(Path(path).parent) if "/" in path else None)
                if path not in {item.path for item in listed}:
                    raise Missing(f"run {run_id} has stored nothing under {path!r} in {self.tracking_uri}") from error
                raise Unavailable(f"{path!r} of run {run_id} could not be fetched from {self.tracking_uri}") from error

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            with _made_once():
                self._client.create_experiment(name)
            found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _fail_unfinished(self, experiment_id: str, key: str) -> None:
        query = f"tags.`{_KEY_TAG}` = '{key}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment_id], query):
            self._client.set_terminated(run.info.run_id, "FAILED")


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files: the digest `models.bundle` writes on a bundle."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder)}\n" for p in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _cut(value: str, most: int) -> str:
    """A value that the server takes; of a longer one its beginning, and where the whole is."""
    told = f"... (whole: {_WHOLE})"
    return value if len(value) <= most else value[: most - len(told)] + told


def _dataset(record: RunRecord) -> DatasetInput:
    dataset = Dataset(
        name=f"{record.use_case} features",
        digest=record.dataset_version,
        source_type="dvc",
        source=json.dumps({"dvc": record.dataset_version}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _version(found: Any) -> Version:
    return Version(
        use_case=found.name,
        version=str(found.version),
        run_id=found.run_id,
        bundle_uri=found.source,
        bundle_sha256=found.tags[_SHA256_TAG],
        tags=dict(found.tags),
    )


@contextmanager
def _made_once() -> Iterator[None]:
    """What the block makes may be there, made by somebody else at this moment."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


@contextmanager
def _reaching(uri: str, missing: str = "what was asked for is not there") -> Iterator[None]:
    """Tell "no answer" (retry later) from "the answer is no"."""
    try:
        yield
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise Missing(f"{missing} in {uri}: {error}") from error
        if error.get_http_status_code() < 500:
            raise
        raise Unavailable(f"MLflow at {uri} did not answer: {error}") from error
    except requests.RequestException as error:
        raise Unavailable(f"MLflow at {uri} did not answer: {error}") from error
