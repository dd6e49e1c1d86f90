"""PostgreSQL, S3 and MLflow, as a task reaches them."""

import secrets
import time
from collections.abc import Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import psycopg2
import requests
from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor.finding import RESTART, Environment, Finding
from infra.local import s3
from pipeline.settings import DATABASES

SKEW_SECONDS = 5.0  # Airflow's tokens are refused beyond 10 s, S3's signatures beyond 15 minutes
_SET_UP_AGAIN = f"the set-up does, so {RESTART.removeprefix('then ')}"


def check_databases(environment: Environment) -> Iterator[Finding]:
    """Whether each database lets its role in, and what time it is there."""
    for name in DATABASES:
        address = urlsplit(environment[name])
        place, check = f"{address.hostname}:{address.port}{address.path}", f"database {address.path.strip('/')}"
        try:
            ahead = _ahead_of_us(environment[name])
        except psycopg2.OperationalError as error:
            reason = str(error).strip().splitlines()[-1]
            yield Finding(
                check=check,
                observation=f"{place}: {reason}",
                remedy=f"set the role's password as in {name}: {_SET_UP_AGAIN}"
                if "password authentication" in reason
                else f"PostgreSQL is not where {name} says: start it, or change that",
            )
        else:
            yield Finding(check=check, observation=f"{place} lets {address.username} in")
            yield check_clock(f"PostgreSQL of {check}", ahead)


def _ahead_of_us(dsn: str) -> float:
    with closing(psycopg2.connect(dsn, connect_timeout=5)) as connection, connection, connection.cursor() as at:
        before = time.time()
        at.execute("select extract(epoch from clock_timestamp())")
        theirs = float((at.fetchone() or (0.0,))[0])
        return theirs - (before + time.time()) / 2


def check_clock(whose: str, ahead_seconds: float) -> Finding:
    """Whether two clocks agree."""
    where = "ahead of" if ahead_seconds > 0 else "behind"
    remedy = "set both machines' clocks (chrony, systemd-timesyncd): tokens and signatures carry the time"
    return Finding(
        check="clock",
        observation=f"{abs(ahead_seconds):.1f} s {where} this machine's: {whose}",
        remedy=remedy if abs(ahead_seconds) > SKEW_SECONDS else "",
    )


def check_buckets(environment: Environment) -> Iterator[Finding]:
    """Whether the keys open both buckets, for reading and for writing, and what time it is there."""
    endpoint = environment["WINDSOCK_S3_ENDPOINT"]
    store = s3.make_s3_client(
        endpoint,
        environment["AWS_ACCESS_KEY_ID"],
        environment["AWS_SECRET_ACCESS_KEY"],
        retries=0,  # who asks what is wrong need not wait for it to mend
    )
    key, content = f"doctor/{secrets.token_hex(8)}", b"windsock"
    for name in ("WINDSOCK_LAKE_BUCKET", "WINDSOCK_VERSIONS_BUCKET"):
        bucket = environment[name]
        try:
            stored = store.put_object(Bucket=bucket, Key=key, Body=content)
            read = store.get_object(Bucket=bucket, Key=key)["Body"].read()
            store.delete_object(Bucket=bucket, Key=key)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            yield Finding(
                check=f"bucket {bucket}",
                observation=f"{endpoint}: {code}",
                remedy=f"make the bucket that {name} names: {_SET_UP_AGAIN}"
                if code == "NoSuchBucket"
                else "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not the server's: give both sides the same,"
                f" {RESTART}",
            )
        except BotoCoreError as error:
            yield Finding(
                check=f"bucket {bucket}",
                observation=f"{endpoint}: {error}",
                remedy="S3 is not where WINDSOCK_S3_ENDPOINT says: start it, or change that",
            )
        else:
            assert read == content
            yield Finding(check=f"bucket {bucket}", observation=f"{endpoint} keeps what it is given")
            dated = parsedate_to_datetime(stored["ResponseMetadata"]["HTTPHeaders"]["date"])
            yield check_clock(f"S3 of bucket {bucket}", dated.timestamp() + 0.5 - time.time())  # it tells whole seconds


def check_mlflow(environment: Environment) -> Iterator[Finding]:
    """Whether MLflow answers under the name by which tasks call it."""
    url = environment["MLFLOW_TRACKING_URI"]
    try:
        answer = requests.get(f"{url}/api/2.0/mlflow/experiments/search?max_results=1", timeout=15)
    except requests.RequestException as error:
        yield Finding(
            check="MLflow",
            observation=f"{url}: {type(error).__name__}",
            remedy="MLflow is not where MLFLOW_TRACKING_URI says: start it, or change that",
        )
        return
    if answer.ok:
        yield Finding(check="MLflow", observation=f"{url} answers from its database")
    elif answer.status_code == 403:
        yield Finding(
            check="MLflow",
            observation=f"{url}: {answer.text.strip()[:100]}",
            remedy=f"add {urlsplit(url).netloc} to the server's MLFLOW_SERVER_ALLOWED_HOSTS, {RESTART}",
        )
    else:
        yield Finding(
            check="MLflow",
            observation=f"{url}: {answer.status_code}",
            remedy="read MLflow's log: its database is away, or of another version",
        )
