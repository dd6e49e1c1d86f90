"""The bytes of one key's series in the online store: columns of numbers as narrow as they go, deflated, with a digest.

Layout: magic (4 bytes), digest (16 bytes, BLAKE2b over the key's text and all that follows), then deflated: the
number of events (uint32) and for each column its form (1 byte), its scale (int64; a whole number is scale times what is
stored), whether marks of validity follow (1 byte), the values, and the marks (1 byte each). Nothing in it is executed.

Several of them, of one key and later ones behind earlier ones, are joined to one: another magic, a digest, how many
there are (uint32), the length of each (uint32), and they.
"""

import hashlib
import json
import math
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.masked import MaskedColumn
from features.series import Series

_MAGIC, _JOINED = b"WSS1", b"WSSJ"
_DIGEST_BYTES = 16
HEAD_BYTES = 4 + _DIGEST_BYTES  # which tells a payload from any other
_COLUMN = struct.Struct("<cqB")
_COUNT = struct.Struct("<I")
_WHOLE: dict[bytes, Any] = {b"b": np.int8, b"h": np.int16, b"i": np.int32, b"q": np.int64}
_REACHES = [(form, np.iinfo(kind).min, np.iinfo(kind).max) for form, kind in _WHOLE.items()]
_DOUBLE, _TEXT = b"d", b"s"  # the scale of a text column is its width in bytes
_LONG, _LONG_BYTES = b"v", 255  # texts of which one is wider: the length of each (int32), and they
_LENGTH = np.dtype("<i4")


class SeriesPacker:
    """Columns of many keys, ready to be cut into payloads: each key's rows from one of `starts` to the next.

    A payload depends on the rows of its own key alone, so that the same rows are the same bytes beside whatever others.
    """

    def __init__(self, table: pa.Table, starts: NDArray[np.int64]) -> None:
        self._bounds = [*starts.tolist(), table.num_rows]
        columns = (column.combine_chunks() for column in table.columns)
        self._columns = [_pack_column(column, starts) for column in columns] if len(starts) else []

    def payload(self, key: str, place: int) -> bytes:
        """The bytes of the key whose rows begin at the start of this place."""
        start, stop = self._bounds[place], self._bounds[place + 1]
        parts = [_COUNT.pack(stop - start)]
        for column in self._columns:
            parts += column.parts(place, start, stop)
        body = zlib.compress(b"".join(parts), 1)
        return _MAGIC + _digest(key, body) + body


def pack_series(series: Series, events: pa.Table) -> Iterator[tuple[str, bytes]]:
    """The text of each key, and its payload, of events in the order of keys, as `extract_series` has them."""
    starts = _find_starts(events, series.key)
    packer = SeriesPacker(events.select(list(series.stored)), starts)
    for place, text in enumerate(key_texts(series, events.take(starts))):
        yield text, packer.payload(text, place)


def pack_events(key: str, columns: Sequence[tuple[Sequence[Any], str]]) -> bytes:
    """The payload of one key's events, by the columns that are stored, each with its kind: as `pack_series` makes it.

    Few events are packed fast. Moments are microseconds since 1970.
    """
    parts = [_COUNT.pack(len(columns[0][0]))]
    for values, kind in columns:
        parts += _pack_values(values, kind)
    body = zlib.compress(b"".join(parts), 1)
    return _MAGIC + _digest(key, body) + body


def _pack_values(values: Sequence[Any], kind: str) -> Iterator[bytes]:
    missing = None in values
    if kind == "varchar":
        texts = [(value or "").encode() for value in values]
        width = max(1, *map(len, texts))
        if width > _LONG_BYTES:
            yield _COLUMN.pack(_LONG, 1, missing)
            yield _join_long(texts)
        else:
            yield _COLUMN.pack(_TEXT, width, missing)
            yield b"".join(text.ljust(width, b"\0") for text in texts)
    elif kind == "double":
        yield _COLUMN.pack(_DOUBLE, 1, missing)
        numbers = [0.0 if value is None else value + 0.0 for value in values]
        yield array("d", [math.nan if math.isnan(number) else number for number in numbers]).tobytes()
    else:
        whole = [0 if value is None else int(value) for value in values]
        scale = divisor if 1 < (divisor := math.gcd(*whole)) < 1 << 63 else 1
        scaled = [value // scale for value in whole] if scale > 1 else whole
        form = _narrowest(min(scaled), max(scaled))
        yield _COLUMN.pack(form, scale, missing)
        yield array(form.decode(), scaled).tobytes()
    if missing:
        yield bytes(value is not None for value in values)


def _join_long(texts: Sequence[bytes]) -> bytes:
    return np.array([len(text) for text in texts], _LENGTH).tobytes() + b"".join(texts)


def _narrowest(least: int, most: int) -> bytes:
    return next(form for form, lowest, highest in _REACHES if lowest <= least and most <= highest)


def key_texts(series: Series, rows: pa.Table) -> list[str]:
    """How the key of each row is written in the store."""
    return [series.key_text(key) for key in read_key_values(series, rows)]


def read_key_values(series: Series, rows: pa.Table) -> list[tuple[Any, ...]]:
    """The key of each row; moments are microseconds since 1970."""
    if not series.key:
        return [()] * rows.num_rows
    return [*zip(*(_key_values(rows[name]) for name in series.key), strict=True)]


def read_keys(series: Series, texts: Sequence[str], stream: pa.Schema) -> pa.Table:
    """The keys that were written as these texts, typed as in their stream."""
    if not series.key:
        return pa.table({"all": [True] * len(texts)})
    keys = zip(*(json.loads(text.removeprefix(series.name)) for text in texts), strict=True)
    return pa.table(
        {
            name: pa.array(values, pa.int64() if pa.types.is_timestamp(kind) else kind).cast(kind)
            for name, values in zip(series.key, keys, strict=True)
            for kind in [stream.field(name).type]
        }
    )


def _key_values(column: pa.ChunkedArray) -> list[Any]:
    return list((column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist())


def _find_starts(events: pa.Table, key: Sequence[str]) -> NDArray[np.int64]:
    """The rows with which a new key begins."""
    begins = np.zeros(events.num_rows, np.bool_)
    begins[:1] = True
    for name in key if events.num_rows else ():
        column = events[name].combine_chunks()
        begins[1:] |= pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy(zero_copy_only=False)
    return np.flatnonzero(begins)


def join_payloads(key: str, payloads: Sequence[bytes]) -> bytes | None:
    """Payloads of one key, the later ones last, as one; None: there is none."""
    if len(payloads) < 2:
        return payloads[0] if payloads else None
    lengths = [_COUNT.pack(len(payload)) for payload in payloads]
    body = b"".join([_COUNT.pack(len(payloads)), *lengths, *payloads])
    return _JOINED + _digest(key, body) + body


def list_payloads(key: str, parts: Iterable[bytes | None]) -> list[bytes]:
    """The payloads of one key's parts in the store, in order.

    Raises:
        ValueError: what was joined is not what was written under this key.
    """
    return [each for part in parts if part is not None for each in _split_payload(key, part)]


def _split_payload(key: str, payload: bytes) -> Iterator[bytes]:
    if payload[:4] != _JOINED:
        yield payload
        return
    body = payload[HEAD_BYTES:]
    if payload[4:HEAD_BYTES] != _digest(key, body):
        raise ValueError(f"the stored series {key} is damaged")
    [count] = _COUNT.unpack_from(body)
    at = _COUNT.size * (1 + count)
    for [length] in _COUNT.iter_unpack(body[_COUNT.size : at]):
        yield body[at : at + length]
        at += length


def unpack_series(key: str, payload: bytes, kinds: Mapping[str, str]) -> dict[str, MaskedColumn]:
    """The columns of one key's series: name -> kind says which there must be, in order.

    Raises:
        ValueError: it is not what was written under this key.
    """
    if payload[:4] != _MAGIC or payload[4:HEAD_BYTES] != _digest(key, payload[HEAD_BYTES:]):
        raise ValueError(f"the stored series {key} is damaged")
    content = zlib.decompress(payload[HEAD_BYTES:])
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
    if form == _LONG:
        ends = np.frombuffer(content, _LENGTH, rows, at).cumsum(dtype=np.int64) + at + _LENGTH.itemsize * rows
        begins = [at + _LENGTH.itemsize * rows, *ends.tolist()]
        long = [content[begin:end].decode() for begin, end in pairwise(begins)]
        return np.array(long, object), begins[-1]
    if form == _TEXT:
        texts = [value.decode() for value in np.frombuffer(content, f"S{scale}", rows, at).tolist()]
        return np.array(texts, object), at + scale * rows
    kind = np.dtype(np.float64 if form == _DOUBLE else _WHOLE[form])
    values = np.frombuffer(content, kind, rows, at)
    return (values if form == _DOUBLE else values.astype(np.int64) * scale), at + kind.itemsize * rows


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + b"\0" + body, digest_size=_DIGEST_BYTES).digest()


@dataclass(frozen=True)
class _PackedColumn:
    """A column in every form that some key has it in; by key its form, its scale, and whether a value is missing."""

    values: Mapping[bytes, Any]  # arrays; of long texts a list
    forms: Sequence[bytes]
    scales: Sequence[int]
    missing: Sequence[bool]
    marks: NDArray[np.uint8]

    def parts(self, place: int, start: int, stop: int) -> Iterator[bytes]:
        form, scale, missing = self.forms[place], self.scales[place], self.missing[place]
        yield _COLUMN.pack(form, scale, missing)
        values = self.values[form][start:stop]
        if form == _LONG:
            yield _join_long(values)
        else:
            yield (values.astype(f"S{scale}") if form == _TEXT else values).tobytes()
        if missing:
            yield self.marks[start:stop].tobytes()


def _pack_column(column: pa.Array, starts: NDArray[np.int64]) -> _PackedColumn:
    marks = pc.is_valid(column).to_numpy(zero_copy_only=False).astype(np.uint8)
    missing, keys = (np.minimum.reduceat(marks, starts) == 0).tolist(), len(starts)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = [(value or "").encode() for value in column.to_pylist()]
        widths = np.maximum.reduceat(np.array([len(text) for text in texts], np.int64), starts)
        is_long = widths > _LONG_BYTES
        # Short ones, in an array as wide as the widest of them; of keys that have a long one, that is not looked at.
        short = [text if len(text) <= _LONG_BYTES else b"" for text in texts] if is_long.any() else texts
        return _PackedColumn(
            {_TEXT: np.array(short, f"S{max(map(len, short)) or 1}"), _LONG: texts},
            [_LONG if each else _TEXT for each in is_long.tolist()],
            np.where(is_long, 1, np.maximum(widths, 1)).tolist(),
            missing,
            marks,
        )
    if pa.types.is_floating(column.type):
        # There is one zero, and one that is no number: two that SQL takes for the same row must be the same bytes.
        values = pc.fill_null(column, 0.0).to_numpy(zero_copy_only=False) + 0.0
        values[np.isnan(values)] = np.nan
        return _PackedColumn({_DOUBLE: values}, [_DOUBLE] * keys, [1] * keys, missing, marks)
    return _pack_whole(pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False), starts, missing, marks)


def _pack_whole(
    whole: NDArray[np.int64], starts: NDArray[np.int64], missing: Sequence[bool], marks: NDArray[np.uint8]
) -> _PackedColumn:
    """Whole numbers: each key's divided by what all of them can be divided by, in as few bytes as they then take."""
    scales = np.maximum(np.gcd.reduceat(np.abs(whole), starts), 1)
    scaled = whole // np.repeat(scales, np.diff([*starts, len(whole)]))
    least, most = np.minimum.reduceat(scaled, starts), np.maximum.reduceat(scaled, starts)
    fits = [(np.iinfo(kind).min <= least) & (most <= np.iinfo(kind).max) for kind in _WHOLE.values()]
    forms = np.array([*_WHOLE])[np.argmax(fits, axis=0)].tolist()
    values = {form: scaled.astype(_WHOLE[form]) for form in set(forms)}
    return _PackedColumn(values, forms, scales.tolist(), missing, marks)
