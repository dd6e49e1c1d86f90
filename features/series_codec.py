"""The bytes of one key's series in the online store: columns of numbers as narrow as they go, deflated, with a digest.

Layout: magic (4 bytes), digest (16 bytes, BLAKE2b over the key's text and all that follows), then deflated: the
number of events (uint32) and for each column its form (1 byte), its scale (int64; a whole number is scale times what is
stored), whether marks of validity follow (1 byte), the values, and the marks (1 byte each). Nothing in it is executed.
"""

import hashlib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.operations import MaskedColumn

_MAGIC = b"WSS1"
_DIGEST_BYTES = 16
_COLUMN = struct.Struct("<cqB")
_COUNT = struct.Struct("<I")
_WHOLE: dict[bytes, Any] = {b"b": np.int8, b"h": np.int16, b"i": np.int32, b"q": np.int64}
_DOUBLE, _TEXT = b"d", b"s"  # the scale of a text column is its width in bytes


@dataclass(frozen=True)
class SeriesPacker:
    """Columns of many keys, ready to be cut into payloads: what they have in common is computed once."""

    headers: tuple[bytes, ...]
    values: tuple[NDArray[Any], ...]
    marks: tuple[NDArray[np.uint8] | None, ...]

    @classmethod
    def of(cls, table: pa.Table) -> "SeriesPacker":
        packed = [_pack_column(column.combine_chunks()) for column in table.columns]
        headers, values, marks = zip(*packed, strict=True)
        return cls(headers, values, marks)

    def payload(self, key: str, start: int, stop: int) -> bytes:
        parts = [_COUNT.pack(stop - start)]
        for header, values, marks in zip(self.headers, self.values, self.marks, strict=True):
            parts += [header, values[start:stop].tobytes()]
            if marks is not None:
                parts.append(marks[start:stop].tobytes())
        body = zlib.compress(b"".join(parts), 1)
        return _MAGIC + _digest(key, body) + body


def unpack_series(key: str, payload: bytes, kinds: Mapping[str, str]) -> dict[str, MaskedColumn]:
    """The columns of one key's series: name -> kind says which there must be, in order.

    Raises:
        ValueError: it is not what was written under this key.
    """
    if payload[:4] != _MAGIC or payload[4 : 4 + _DIGEST_BYTES] != _digest(key, payload[4 + _DIGEST_BYTES :]):
        raise ValueError(f"the stored series {key} is damaged")
    content = zlib.decompress(payload[4 + _DIGEST_BYTES :])
    [rows] = _COUNT.unpack_from(content)
    at, columns = _COUNT.size, {}
    for name in kinds:
        form, scale, marked = _COLUMN.unpack_from(content, at)
        at += _COLUMN.size
        values, at = _values(content, at, form, scale, rows)
        valid = np.frombuffer(content, np.bool_, rows, at) if marked else np.ones(rows, np.bool_)
        at += rows if marked else 0
        columns[name] = MaskedColumn(values, valid)
    return columns


def _values(content: bytes, at: int, form: bytes, scale: int, rows: int) -> tuple[NDArray[Any], int]:
    if form == _TEXT:
        texts = [value.decode() for value in np.frombuffer(content, f"S{scale}", rows, at).tolist()]
        return np.array(texts, object), at + scale * rows
    kind = np.dtype(np.float64 if form == _DOUBLE else _WHOLE[form])
    values = np.frombuffer(content, kind, rows, at)
    return (values if form == _DOUBLE else values.astype(np.int64) * scale), at + kind.itemsize * rows


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + b"\0" + body, digest_size=_DIGEST_BYTES).digest()


def _pack_column(column: pa.Array) -> tuple[bytes, NDArray[Any], NDArray[np.uint8] | None]:
    marks = pc.is_valid(column).to_numpy(zero_copy_only=False).astype(np.uint8) if column.null_count else None
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = [(value or "").encode() for value in column.to_pylist()]
        width = max((len(value) for value in texts), default=0) or 1
        return _header(_TEXT, width, marks), np.array(texts, f"S{width}"), marks
    if pa.types.is_floating(column.type):
        return _header(_DOUBLE, 1, marks), pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False), marks
    whole = pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    scale = int(np.gcd.reduce(whole)) or 1 if len(whole) else 1
    scaled = whole // scale
    form = next(f for f, kind in _WHOLE.items() if _fits(scaled, kind))
    return _header(form, scale, marks), scaled.astype(_WHOLE[form]), marks


def _fits(values: NDArray[np.int64], kind: Any) -> bool:
    limits = np.iinfo(kind)
    return not len(values) or bool(values.min() >= limits.min and values.max() <= limits.max)


def _header(form: bytes, scale: int, marks: NDArray[np.uint8] | None) -> bytes:
    return _COLUMN.pack(form, scale, marks is not None)
