"""The bar to know about: bare ASGI, an ONNX Runtime session on one thread, and batches of up to 64 within 1 ms."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import orjson

_BATCH, _DELAY_SECONDS = 64, 0.001
_FOLDER = Path(os.environ["BENCHMARK_ONNX"])
_ENCODER = json.loads((_FOLDER / "encoder.json").read_text())
_NUMERIC = [column["name"] for column in _ENCODER["numeric"]]
_CODES = {c["name"]: {value: code for code, value in enumerate(c["values"], 1)} for c in _ENCODER["categorical"]}
_HEADERS = [(b"content-type", b"application/json")]

Message = dict[str, Any]
Row = Mapping[str, Any]


def _session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(_FOLDER / "model.onnx", options, providers=["CPUExecutionProvider"])


class Batcher:
    """Answers what came within a millisecond at once."""

    def __init__(self) -> None:
        self._session = _session()
        self._waiting: list[tuple[Row, asyncio.Future[float]]] = []
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, row: Row) -> "asyncio.Future[float]":
        """The row's answer, to come."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[float] = loop.create_future()
        self._waiting.append((row, answer))
        if len(self._waiting) == _BATCH:
            self._flush()
        elif self._timer is None:
            self._timer = loop.call_later(_DELAY_SECONDS, self._flush)
        return answer

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self._waiting = self._waiting, []
        numbers = np.array([[row[name] for name in _NUMERIC] for row, _ in batch], np.float32)  # None becomes NaN
        codes = np.array([[known.get(row[name], 0) for name, known in _CODES.items()] for row, _ in batch], np.int64)
        [scores] = self._session.run(None, {"numbers": numbers, "codes": codes})
        for (_, answer), score in zip(batch, scores.tolist(), strict=True):
            if not answer.done():  # its client may have gone
                answer.set_result(score)


_BATCHER = Batcher()


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """POST one event's features, get its probability."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer: dict[str, Any]
    try:
        status, answer = 200, {"probability": await _BATCHER.ask(_checked(orjson.loads(body)))}
    except (ValueError, KeyError, TypeError) as problem:
        status, answer = 400, {"error": repr(problem)}
    await send({"type": "http.response.start", "status": status, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": orjson.dumps(answer)})


def _checked(row: Row) -> Row:
    if not all(row[name] is None or isinstance(row[name], float | int) for name in _NUMERIC):
        raise ValueError("expected numbers")
    if not row.keys() >= _CODES.keys():
        raise ValueError(f"expected {', '.join(_CODES)}")
    return row
