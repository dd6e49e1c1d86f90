"""S3: immutable, content-addressed objects, written once and verified on every read; and named ones for reports."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError

from adapters.errors import Corrupt, Refused
from adapters.files import write_atomically
from adapters.retrying import retry_call

_READ_ATTEMPTS = 4  # of a body that broke off or arrived changed; everything else botocore retries itself
_CONFLICT_ATTEMPTS = 5
_PAUSES = {"pause_seconds": 0.1, "pause_factor": 2.0}
_CONFIG = Config(
    signature_version="s3v4",
    s3={"addressing_style": "path"},
    retries={"mode": "standard", "total_max_attempts": 8},  # exponential, jittered, capped at 20 s
    connect_timeout=5,
    read_timeout=60,
)
_ADDRESSED = re.compile(r"/([0-9a-f]{64})(\.[a-z0-9]+)?$")
_REFUSALS = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "NoSuchBucket"}


class _ContendedError(ClientError):
    """Another put of the same key is under way."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An object as stored; `existed` when the same bytes were there before."""

    uri: str
    sha256: str
    existed: bool


@dataclass(frozen=True)
class Lake:
    """One bucket. `cache` is the local folder that `local` keeps verified copies in."""

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str
    cache: Path

    @cached_property
    def client(self) -> Any:
        """The boto3 client (made at run time, so it has no type), for what this class does not cover."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=_CONFIG,
        )

    def put(self, key_prefix: str, data: bytes, suffix: str) -> Stored:
        """Store bytes at `key_prefix/<sha256><suffix>` unless they are there already.

        Raises:
            Corrupt: the key is taken by other bytes than its name promises.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        key = f"{key_prefix.strip('/')}/{sha256}{suffix}"
        existed = not retry_call(
            lambda: self._put_if_absent(key, data), errors=_ContendedError, attempts=_CONFLICT_ATTEMPTS, **_PAUSES
        )
        uri = self.uri(key)
        if existed:  # perhaps by our own first try, whose answer was lost: the bytes decide
            self.read(uri, sha256)
        return Stored(uri=uri, sha256=sha256, existed=existed)

    def put_named(self, key: str, data: bytes, content_type: str) -> str:
        """Store or replace an object by name (reports, docs: not for data that is read back); returns its URI."""
        with self._translated(key):
            self.client.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)
        return self.uri(key)

    def put_text(self, key: str, text: str, content_type: str = "text/plain; charset=utf-8") -> str:
        """Store or replace a text by name; returns its URI."""
        return self.put_named(key, text.encode(), content_type)

    def read(self, uri: str, sha256: str | None = None) -> bytes:
        """An object's bytes, verified against `sha256` or else against the hash in its name, where it has one.

        Raises:
            Corrupt: the bytes are not those that were written.
            FileNotFoundError: there is no such object.
        """
        return retry_call(
            lambda: self._read_once(uri, sha256 or _hash_in(uri)),
            errors=(Corrupt, IncompleteReadError, ReadTimeoutError, ResponseStreamingError),
            attempts=_READ_ATTEMPTS,
            **_PAUSES,
        )

    def _read_once(self, uri: str, expected: str | None) -> bytes:
        key = self._key(uri)
        with self._translated(key):
            data = bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            raise Corrupt(f"{uri}: its bytes do not have SHA-256 {expected}; it was changed or damaged in the store")
        return data

    def local(self, uri: str) -> Path:
        """A verified local copy of a content-addressed object, fetched when absent or damaged."""
        if (sha256 := _hash_in(uri)) is None:
            raise ValueError(f"{uri} is not content-addressed: only immutable objects are cached")
        path = self.cache / sha256[:2] / f"{sha256}{Path(uri).suffix}"
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            write_atomically(path, self.read(uri, sha256))
        return path

    def exists(self, uri: str) -> bool:
        """Whether there is such an object."""
        try:
            with self._translated(uri):
                self.client.head_object(Bucket=self.bucket, Key=self._key(uri))
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        """URIs of the objects whose key begins with `prefix`, sorted."""
        with self._translated(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return sorted(self.uri(item["Key"]) for page in pages for item in page.get("Contents", []))

    def uri(self, key: str) -> str:
        """The URI of a key in this bucket."""
        return f"s3://{self.bucket}/{key}"

    def _key(self, uri: str) -> str:
        prefix = f"s3://{self.bucket}/"
        if not uri.startswith(prefix):
            raise ValueError(f"{uri} is not in the bucket {self.bucket}")
        return uri.removeprefix(prefix)

    def _put_if_absent(self, key: str, data: bytes) -> bool:
        try:
            with self._translated(key):
                self.client.put_object(Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 409:  # another put of this key is under way
                raise _ContendedError(error.response, error.operation_name) from error
            if status != 412:
                raise
        else:
            return True
        return False

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _REFUSALS:
                raise Refused(
                    f"S3 at {self.endpoint}, bucket {self.bucket}: {code}; check AWS_ACCESS_KEY_ID,"
                    " AWS_SECRET_ACCESS_KEY and WINDSOCK_LAKE_BUCKET"
                ) from error
            if code in {"NoSuchKey", "404"}:
                raise FileNotFoundError(f"no object {key} in bucket {self.bucket} at {self.endpoint}") from error
            raise


def _hash_in(uri: str) -> str | None:
    return match[1] if (match := _ADDRESSED.search(uri)) else None
