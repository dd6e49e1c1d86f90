"""TorchServe's entry: loads a bundle once a worker, and hands batches to `serving/answers.py`.

An archive holds data only, and names this module, which the server's own checkout provides. A worker that must not
serve its bundle says why in the model store (`refused-<use case>-<version>.txt`), for the deployment that waits for it.
"""

import contextlib
import gc
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import features
from models.attribution import attribute
from models.bundle import Bundle, load_bundle
from models.bundle_card import read_definition
from serving.answers import Answerer, InferenceReply, ServingOptions, read_inference_request
from serving.lookup import FeatureLookup
from serving.openapi import describe_endpoint
from serving.prediction_log import PredictionLog
from serving.predictor import Predictor
from serving.request import RequestReader
from serving.socket_buffer import install_socket_buffer
from serving.worker_metrics import WorkerMetrics

DSN, SPOOL, STORE = "WINDSOCK_ONLINE_DSN", "WINDSOCK_SPOOL", "WINDSOCK_MODEL_STORE"


class ModelWorker:
    """One worker's model, ready to answer."""

    def __init__(
        self, options: ServingOptions, bundle: Bundle, definition: features.FeatureSet, environment: Mapping[str, str]
    ) -> None:
        self._options = options
        self._schema = json.dumps(
            describe_endpoint(
                use_case=options.use_case,
                title=options.title,
                fields=definition.request,
                kind=options.kind,
                lead_minutes=options.lead_minutes,
                max_events=options.max_events,
            )
        ).encode()
        self._log: PredictionLog | None = None  # until the first answer is given
        log = PredictionLog(Path(environment[SPOOL]), use_case=options.use_case)
        self._dropped = 0
        self._metrics = WorkerMetrics([options.use_case, options.version])
        self._answerer = Answerer(
            options=options,
            reader=RequestReader(definition.request, max_events=options.max_events),
            lookup=FeatureLookup(
                dsn=environment[DSN],
                use_case=options.use_case,
                definition=definition,
                lead=options.lead,
                timeout_ms=options.store_timeout_ms,
                is_mirrored=True,
            ),
            predictor=Predictor(bundle),
            explain=lambda table: attribute(bundle, table),
            log=self._write,
        )
        self._warm_up({field.name: field.example for field in definition.request})
        self._log = log

    def _warm_up(self, example: Mapping[str, Any]) -> None:
        """The first answer takes a second or more: it is given before the first request, and not logged."""
        [reply] = self._answerer.answer([read_inference_request(json.dumps(example).encode(), {})])
        if reply.status != 200:
            raise ValueError(f"the example of the request's fields is refused: {reply.body.decode()}")

    def answer(self, rows: Sequence[Mapping[str, Any]], context: Any) -> list[bytes]:
        """A body a request; statuses go by the context, and headers: X-Request-Id is TorchServe's own, which stays."""
        began = time.perf_counter()
        every = [
            read_inference_request(row.get("body"), context.get_all_request_header(index))
            for index, row in enumerate(rows)
        ]
        answered = [index for index, one in enumerate(every) if not one.schema]
        replies = self._answerer.answer([every[index] for index in answered])
        bodies = [self._schema] * len(rows)
        for index, reply in zip(answered, replies, strict=True):
            bodies[index] = reply.body
            context.set_response_status(code=reply.status, idx=index)
        for index in range(len(rows)):
            context.set_response_header(index, "X-Windsock-Version", self._options.version)
            context.set_response_content_type(index, "application/json")
        self._count(context.metrics, replies, time.perf_counter() - began)
        return bodies

    def _write(self, answers: Sequence[Mapping[str, Any]]) -> None:
        if self._log is not None and not self._log.write(answers):
            self._dropped += len(answers)

    def _count(self, server: Any, replies: Sequence[InferenceReply], seconds: float) -> None:
        counts = {
            "windsock_requests_total": len(replies),
            "windsock_refused_total": sum(reply.status == 400 for reply in replies),
            "windsock_events_total": sum(reply.events for reply in replies),
            "windsock_degraded_total": sum(reply.degraded for reply in replies),
            "windsock_unlogged_total": self._dropped,
        }
        self._dropped = 0
        durations = {"windsock_answer_seconds": seconds, "windsock_lookup_seconds": self._answerer.lookup_seconds}
        self._metrics.add(server, counts, durations)


def open_worker(folder: Path, environment: Mapping[str, str]) -> ModelWorker:
    """The worker of an unpacked archive.

    Raises:
        ValueError: the bundle is not the one that was deployed, or learnt features that this code cannot compute.
    """
    options = ServingOptions.from_document(json.loads((folder / "options.json").read_text()))
    bundle = load_bundle(folder / "bundle", sha256=options.bundle_sha256)
    digest = bundle.card["features"]["digest"]
    try:
        definition = features.learnt_definition(options.use_case, digest, read_definition(folder / "bundle"))
    except ValueError as error:
        raise ValueError(
            f"{options.use_case} {options.version} was trained on features {digest[:12]}, which this server cannot"
            f" compute ({error}): serve it from the code it was trained with, or train again"
        ) from error
    if bundle.card["use_case"] != options.use_case or bundle.card["kind"] != options.kind:
        raise ValueError(f"the bundle is a {bundle.card['kind']} model of {bundle.card['use_case']}, not as deployed")
    return ModelWorker(options, bundle, definition, environment)


_workers: list[ModelWorker] = []  # of this process: one, once it is loaded


def handle(data: Sequence[Mapping[str, Any]] | None, context: Any) -> list[bytes] | None:
    """TorchServe's entry point: called once with no data to load, then once a batch."""
    if data is None:
        _workers[:] = [_load(Path(context.system_properties["model_dir"]), os.environ)]
        gc.collect()
        gc.freeze()  # what is loaded stays: no answer waits while four hundred thousand objects are looked through
        return None
    return _workers[0].answer(data, context)


def _load(folder: Path, environment: Mapping[str, str]) -> ModelWorker:
    install_socket_buffer()
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.WARNING)  # TorchServe's worker says a line a batch
    logging.getLogger("ts.metrics").setLevel(logging.INFO)  # its way to tell a metric to the server
    try:
        if missing := [name for name in (DSN, SPOOL) if not environment.get(name)]:
            raise ValueError(f"not set in the server's environment: {', '.join(missing)}")  # noqa: TRY301
        return open_worker(folder, environment)
    except (OSError, ValueError) as error:  # the bundle is not what it should be, or the spool cannot be written
        _write_refusal(folder, environment, str(error))
        raise RuntimeError(str(error)) from error  # the one that TorchServe reports instead of dying of


def _write_refusal(folder: Path, environment: Mapping[str, str], problem: str) -> None:
    manifest = json.loads((folder / "MAR-INF" / "MANIFEST.json").read_text())["model"]
    name = f"refused-{manifest['modelName']}-{manifest['modelVersion']}.txt"
    with contextlib.suppress(OSError):  # a read-only store: then it is in the log only
        (Path(environment[STORE]) / name).write_text(problem)
