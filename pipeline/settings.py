"""The environment, read once: where the parts are and what opens them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WEBHOOK_PREFIX = "WEBHOOK_"  # of the variables that params.yaml may name


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Addresses and credentials; a secret never appears in repr()."""

    home: Path
    params: Path
    code_sha: str
    warehouse_dsn: str = field(repr=False)
    source_dsn: str = field(repr=False)
    studies_dsn: str = field(repr=False)
    s3_endpoint: str
    s3_access_key: str = field(repr=False)
    s3_secret_key: str = field(repr=False)
    lake_bucket: str
    versions_bucket: str
    tracking_uri: str
    slack_token: str | None = field(repr=False)
    slack_webhook: str | None = field(repr=False)
    slack_channel: str
    slack_api: str | None
    follower_dsn: str | None = field(default=None, repr=False)
    inference_url: str | None = None
    management_url: str | None = None
    model_store: Path | None = None
    gateway_url: str | None = None
    gateway_admin: str | None = None
    gateway_maps: Path | None = None
    gateway_key: str | None = field(default=None, repr=False)
    webhooks: Mapping[str, str] = field(default_factory=dict, repr=False)  # variable -> an address, or a secret


DATABASES = ("WINDSOCK_WAREHOUSE_DSN", "WINDSOCK_SOURCE_DSN", "WINDSOCK_STUDIES_DSN")  # what each stack has
_REQUIRED = {
    "home": "WINDSOCK_HOME",
    "code_sha": "WINDSOCK_CODE_SHA",
    "warehouse_dsn": "WINDSOCK_WAREHOUSE_DSN",
    "source_dsn": "WINDSOCK_SOURCE_DSN",
    "studies_dsn": "WINDSOCK_STUDIES_DSN",
    "s3_endpoint": "WINDSOCK_S3_ENDPOINT",
    "s3_access_key": "AWS_ACCESS_KEY_ID",
    "s3_secret_key": "AWS_SECRET_ACCESS_KEY",
    "lake_bucket": "WINDSOCK_LAKE_BUCKET",
    "versions_bucket": "WINDSOCK_VERSIONS_BUCKET",
    "tracking_uri": "MLFLOW_TRACKING_URI",
}


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from environment variables; names every missing one at once."""
    if missing := sorted(name for name in _REQUIRED.values() if not environment.get(name)):
        raise ValueError(f"not set in the environment: {', '.join(missing)} (`make up` writes them to .windsock/env)")
    required = {field_name: environment[name] for field_name, name in _REQUIRED.items()}
    return Settings(
        **{**required, "home": Path(required["home"])},  # type: ignore[arg-type]  # every other value is a string
        params=find_params(environment),
        slack_token=environment.get("SLACK_BOT_TOKEN") or None,
        slack_webhook=environment.get("SLACK_WEBHOOK_URL") or None,
        slack_channel=environment.get("SLACK_CHANNEL") or "#windsock",
        slack_api=environment.get("SLACK_API_URL") or None,
        follower_dsn=environment.get("WINDSOCK_FOLLOWER_DSN") or None,
        inference_url=_url(environment, "WINDSOCK_INFERENCE_URL"),
        management_url=_url(environment, "WINDSOCK_MANAGEMENT_URL"),
        model_store=_path(environment, "WINDSOCK_MODEL_STORE"),
        gateway_url=_url(environment, "WINDSOCK_GATEWAY_URL"),
        gateway_admin=environment.get("WINDSOCK_GATEWAY_ADMIN") or None,
        gateway_maps=_path(environment, "WINDSOCK_GATEWAY_MAPS"),
        gateway_key=environment.get("WINDSOCK_GATEWAY_KEY") or None,
        webhooks={name: value for name, value in environment.items() if name.startswith(WEBHOOK_PREFIX) and value},
    )


def find_params(environment: Mapping[str, str]) -> Path:
    """The params.yaml that an environment names, or that of the checkout."""
    return Path(environment.get("WINDSOCK_PARAMS") or REPOSITORY / "params.yaml")


def _url(environment: Mapping[str, str], name: str) -> str | None:
    """Without a slash at its end: paths are put behind it."""
    return environment.get(name, "").rstrip("/") or None


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    return Path(environment[name]) if environment.get(name) else None


@cache
def settings() -> Settings:
    """This process's settings."""
    return read_settings(os.environ)
