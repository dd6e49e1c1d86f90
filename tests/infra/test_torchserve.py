"""The real server under its supervisor: versions beside each other, refusals, kills, restarts, and what it logs."""

import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import features
from adapters.endpoint import Endpoint
from adapters.errors import Unavailable
from adapters.model_store import Archive, ModelStore
from infra.local.processes import ProcessIdentity, find_members, wait_until_ended
from infra.local.stack import Stack
from infra.local.torchserve import online_dsn
from models import bundle
from serving.answers import ServingOptions
from serving.lookup import FeatureLookup
from serving.predictor import Predictor
from serving.request import RequestReader
from tests.conftest import start_stack
from tests.features.stored import filled, requests
from tests.features.world import day, engine, small_world
from tests.infra.test_stack import command_line, query, read_living
from tests.serving.online import OPTIONS, as_json, event, fill, make_bundle
from tests.waiting import until

SETTINGS = {"batch_size": 64, "max_batch_delay_ms": 1, "workers": 1}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def online(processes: None) -> Iterator[Stack]:
    yield from start_stack("postgres", "torchserve")


@pytest.fixture(scope="module")
def endpoint(online: Stack) -> Endpoint:
    where = online.environment()
    return Endpoint(
        where["WINDSOCK_INFERENCE_URL"],
        where["WINDSOCK_MANAGEMENT_URL"],
        ModelStore(Path(where["WINDSOCK_MODEL_STORE"])),
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    for seed in (1, 2):
        make_bundle(folder / str(seed), seed=seed)
    make_bundle(folder / "foreign", seed=3, digest="f" * 64)
    return folder


def archive(endpoint: Endpoint, bundles: Path, version: str, name: str | None = None, **changes: Any) -> Archive:
    folder = bundles / (name or version)
    return endpoint.store.archive(
        folder,
        use_case="flights",
        version=version,
        bundle_sha256=bundle.digest_bundle(folder),
        options={**OPTIONS, **changes},
    )


@pytest.fixture(scope="module")
def served(endpoint: Endpoint, bundles: Path) -> Endpoint:
    """Versions 1 and 2, ready."""
    for version in ("1", "2"):
        endpoint.register(archive(endpoint, bundles, version), **SETTINGS)
    return endpoint


def post(endpoint: Endpoint, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(endpoint.inference_url.removeprefix("http://"), timeout=30)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, {"Content-Type": "application/json", **given})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(answer.read())
    finally:
        connection.close()


def manage(endpoint: Endpoint, method: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(endpoint.management_url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def answers_again(endpoint: Endpoint, version: str = "1") -> bool:
    try:
        return bool(endpoint.ask("flights", version, [event()], request_id="again", timeout_seconds=5))
    except Unavailable:
        return False


def processes(online: Stack, name: str) -> list[psutil.Process]:
    part = online.state()["parts"][name]
    return find_members(ProcessIdentity(pid=part["pid"], started=part["started"]), f"{online.home().stack}/{name}")


def workers(online: Stack) -> list[psutil.Process]:
    lines = read_living(processes(online, "torchserve"), lambda process: (process, command_line(process)))
    return [process for process, line in lines if "model_service_worker" in line]


def test_two_versions_answer_beside_each_other_as_the_batch_path_does(served, online, bundles):
    events = [event(flight=number, carrier=carrier) for number, carrier in ((15, "UA"), (4000, "AA"), (1, "ZZ"))]
    definition = features.definition("flights")
    options = ServingOptions.from_document({**OPTIONS, "use_case": "flights", "version": "1", "bundle_sha256": ""})
    reader = RequestReader(definition.request, max_events=256)
    lookup = FeatureLookup(
        dsn=online_dsn(online.home()), use_case="flights", definition=definition, lead=options.lead, timeout_ms=5000
    )
    table = lookup.look_up(reader.list_events(reader.read(json.dumps(events).encode()).rows)).features
    scores = []
    for version in ("1", "2"):
        answered = served.ask("flights", version, events, request_id=f"parity-{version}")
        expected = Predictor.load(bundles / version).predict(table)
        assert [row["probability"] for row in answered] == pytest.approx(expected.tolist(), abs=1e-5)
        assert {row["model_version"] for row in answered} == {version}
        scores.append([row["probability"] for row in answered])
    assert scores[0] != pytest.approx(scores[1], abs=1e-5)


def test_registering_what_is_there_changes_nothing(served, bundles):
    known = archive(served, bundles, "1")
    served.register(known, **SETTINGS)
    assert served.versions("flights") == {"1": True, "2": True}
    again, _ = manage(served, "POST", f"/models?url={known.path.name}&initial_workers=0")
    assert again == 409  # what register relies on to bring up what an earlier attempt left without a worker


def test_one_request_at_a_time_and_a_batch_answer_the_same(served):
    alone = [served.ask("flights", "1", [event(flight=n)], request_id=f"a{n}")[0]["probability"] for n in range(1, 9)]
    together = served.ask("flights", "1", [event(flight=n) for n in range(1, 9)], request_id="b")
    assert [row["probability"] for row in together] == pytest.approx(alone, abs=1e-6)


def test_the_request_is_named_as_it_was_and_the_version_in_a_header(served):
    status, headers, document = post(
        served, "/predictions/flights/1", json.dumps(event()).encode(), X_Request_Id="named-1"
    )
    assert (status, document["request_id"]) == (200, "named-1")
    assert headers["x-windsock-version"] == "1"


def test_the_schema_is_told_and_its_example_is_answered(served):
    _, _, schema = post(served, "/predictions/flights/1", b"", X_Windsock_Ask="openapi")
    fields = schema["components"]["schemas"]["Event"]["properties"]
    example = {name: field["examples"][0] for name, field in fields.items()}
    assert served.ask("flights", "1", [example], request_id="example")


def test_explanations_add_up_to_the_answer_and_plain_requests_get_none(served):
    [row] = served.ask("flights", "1", [event()], request_id="explained", explain=True)
    assert row["baseline"] + sum(row["attributions"].values()) == pytest.approx(row["probability"], abs=1e-3)
    assert "attributions" not in served.ask("flights", "1", [event()], request_id="plain")[0]


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\x00", "body"),
        (b"[" * 50_000, "body"),
        (b"[]", "body"),
        (json.dumps([event()] * 257).encode(), "body"),
        (json.dumps(event(flight="15")).encode(), "flight"),
        (json.dumps([event(), event(dest=None)]).encode(), "events[1].dest"),
        (json.dumps(event(scheduled_departure="2013-07-04T18:30:00")).encode(), "scheduled_departure"),
        (json.dumps(event(delay=5)).encode(), "delay"),
    ],
)
def test_bad_input_is_a_400_that_says_where(served, body, path):
    status, _, document = post(served, "/predictions/flights/1", body)
    assert (status, document["path"], bool(document["expected"])) == (400, path, True)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/predictions/flights/9", {}, 404),
        ("/predictions/nothing", {}, 404),
        ("/predictions/flights/1?a=%ff&b", {}, 400),
        ("/predictions/flights/1", {"Content_Type": "multipart/form-data; boundary=x"}, 400),
        ("/predictions/flights/1", {"Content_Type": "application/x-www-form-urlencoded"}, 400),
        ("/predictions/flights/1", {"Content_Type": "text/\xe9"}, 400),
        ("/predictions/flights/1", {"X_Request_Id": "\xe9" * 2000}, 400),
    ],
)
def test_nothing_a_client_does_around_the_body_is_an_error_of_ours(served, path, headers, status):
    found, _, _ = post(served, path, b"a=1&b", **headers)
    assert found == status
    assert answers_again(served)


def test_every_answer_reaches_the_table_with_what_it_was_computed_from(served, online):
    served.ask("flights", "2", [event(), event(flight=16)], request_id="logged", slot="candidate")
    dsn, where = online.home().dsn("warehouse"), "from online_answers where request_id = 'logged'"
    until(lambda: query(dsn, f"select count(*) {where}") == [(2,)])
    rows = query(
        dsn, f"select position, slot, model_version, request ->> 'flight', degraded, reasons {where} order by 1"
    )
    assert [row[:5] for row in rows] == [(0, "candidate", "2", "15", True), (1, "candidate", "2", "16", True)]
    assert "feature store did not answer" in rows[0][5]  # nobody filled it
    [(logged,)] = query(dsn, f"select features {where} and position = 0")
    assert set(logged) == {*features.definition("flights").numeric, *features.definition("flights").categorical}


def test_the_servers_role_may_do_nothing_but_its_work(online):
    dsn = online_dsn(online.home())
    for forbidden in ("delete from online_answers", "select * from predictions", "create table mine (a int)"):
        with pytest.raises(Exception, match="permission denied"):
            query(dsn, forbidden)


def test_real_events_with_real_history_are_answered_as_the_batch_answers_them(served, online, bundles):
    since, as_of, world = day(12), day(20), small_world()
    fill(online.home().dsn("warehouse"), filled(world, since, as_of), since, as_of)
    batch = engine(world, since, as_of)[0]
    events = as_json(requests(world, since, as_of))
    patient = archive(served, bundles, "9", "1", store_timeout_ms=10_000)  # the machine is shared
    served.register(patient, **SETTINGS)
    answered = [
        row
        for first in range(0, len(events), 256)
        for row in served.ask("flights", "9", events[first : first + 256], request_id=f"history-{first}")
    ]
    served.retire("flights", "9")
    expected = Predictor.load(bundles / "1").predict(batch)
    assert len(answered) > 1000
    assert [row["entity_key"] for row in answered] == batch["entity_key"].to_pylist()
    assert [row["probability"] for row in answered] == pytest.approx(expected.tolist(), abs=1e-5)
    assert {row["feature_age_seconds"] for row in answered} == {0.0}


@pytest.fixture(scope="module")
def elsewhere(served: Endpoint) -> Iterator[SimpleNamespace]:
    """An archive that would load, beside the store and behind HTTP; what was asked for."""
    folder = served.store.folder.parent
    (folder / "evil.mar").write_bytes(next(served.store.folder.glob("flights-1-*.mar")).read_bytes())
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield SimpleNamespace(folder=folder, store=served.store.folder, port=server.server_port, asked=asked)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:{at.port}/evil.mar", "does not match any allowed URL"),
        ("file://{at.folder}/evil.mar", "does not match any allowed URL"),
        ("file://{at.store}/../evil.mar", "Relative path is not allowed"),
        ("../evil.mar", "Relative path is not allowed"),
    ],
)
def test_models_are_loaded_from_the_store_and_from_nowhere_else(served, elsewhere, url, why):
    status, said = manage(served, "POST", f"/models?url={url.format(at=elsewhere)}&model_name=evil")
    assert (status, why in said) == (404, True), said
    assert elsewhere.asked == []
    assert served.versions("evil") == {}


def test_the_same_archive_is_loaded_where_it_lies_in_the_store(served, elsewhere):
    (elsewhere.store / "evil.mar").write_bytes((elsewhere.folder / "evil.mar").read_bytes())
    status, said = manage(served, "POST", "/models?url=evil.mar&model_name=evil")
    assert status == 200, said
    until(lambda: served.versions("evil") == {"1": True})
    assert manage(served, "DELETE", "/models/evil")[0] == 200
    (elsewhere.store / "evil.mar").unlink()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_dead_deployment_left_loaded_is_not_taken_for_the_archive_of_the_next(served, bundles, workers):
    left = archive(served, bundles, "10", "1")
    status, said = manage(served, "POST", f"/models?url={left.path.name}&initial_workers={workers}&synchronous=true")
    assert status == 200, said
    assert served.versions("flights")["10"] is bool(workers)
    made = archive(served, bundles, "10", "1", max_events=1)
    served.register(made, **SETTINGS)
    with pytest.raises(ValueError, match="1 to 1 events"):
        served.ask("flights", "10", [event()] * 2, request_id="two")
    assert list(served.store.folder.glob("flights-10-*.mar")) == [made.path]
    served.retire("flights", "10")
    assert list(served.store.folder.glob("flights-10-*.mar")) == []


def test_a_tampered_archive_is_refused_and_an_untouched_one_is_not(served, bundles):
    made = archive(served, bundles, "3", "1")
    good = made.path.read_bytes()
    made.path.write_bytes(good[:-200] + bytes([good[-200] ^ 1]) + good[-199:])
    with pytest.raises(ValueError, match="SHA-256"):
        served.register(made, **SETTINGS)
    assert "3" not in served.versions("flights")
    made.path.write_bytes(good)
    served.register(made, **SETTINGS)
    assert served.versions("flights")["3"]
    served.retire("flights", "3")
    assert "3" not in served.versions("flights")
    assert not made.path.exists()


def test_a_bundle_that_is_not_the_one_promised_is_refused_by_the_worker(served, bundles):
    made = served.store.archive(
        bundles / "1", use_case="flights", version="5", bundle_sha256="0" * 64, options=OPTIONS
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"flights 5 was refused by the server: bundle .* has the digest"):
        served.register(made, **SETTINGS)
    assert not made.path.exists()


def test_a_bundle_of_other_features_is_refused_with_the_reason_and_the_old_one_keeps_answering(served, bundles):
    with pytest.raises(ValueError, match="was trained on features ffffffffffff, which this server cannot compute"):
        served.register(archive(served, bundles, "4", "foreign"), **SETTINGS)
    assert served.versions("flights") == {"1": True, "2": True}
    assert answers_again(served)


def test_swapping_versions_while_clients_ask_fails_nobody(served, bundles):
    stop, failures, asked = threading.Event(), [], [0] * 4

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(served.inference_url.removeprefix("http://"), timeout=30)
        while not stop.wait(0.01):  # evenly: what is loaded meanwhile needs a processor, too
            connection.request(
                "POST", "/predictions/flights", json.dumps(event()).encode(), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            body = answer.read()
            asked[number] += 1
            if answer.status != 200:
                failures.append((answer.status, body))
        connection.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for version in ("6", "7"):
        served.register(archive(served, bundles, version, "2"), **SETTINGS)
        served.make_default("flights", version)
        if version == "7":
            served.retire("flights", "6")
    served.make_default("flights", "1")
    served.retire("flights", "7")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(asked) > 20


def test_a_killed_worker_is_replaced_and_what_it_had_answered_is_not_lost(served, online):
    served.ask("flights", "1", [event()], request_id="before-the-kill")
    killed = workers(online)
    for worker in killed:
        worker.send_signal(signal.SIGKILL)
    until(lambda: answers_again(served), 60)
    dsn = online.home().dsn("warehouse")
    until(lambda: query(dsn, "select count(*) from online_answers where request_id = 'before-the-kill'") == [(1,)])
    theirs = f"split_part(session, '-', 2)::int in ({', '.join(str(worker.pid) for worker in killed)})"
    ended = f"select count(*), sum(lost), sum(answered - shipped - repeated) from online_losses where {theirs}"
    until(lambda: query(dsn, f"{ended} and ended_at is not null") == [(len(killed), 0, 0)])


def test_a_killed_server_comes_back_with_what_was_deployed_and_without_what_was_tampered_with(served, online, bundles):
    served.register(archive(served, bundles, "8", "2"), **SETTINGS)
    [mar] = served.store.folder.glob("flights-8-*.mar")
    mar.write_bytes(mar.read_bytes() + b"x")
    before = online.state()["parts"]["torchserve"]["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: online.state()["parts"]["torchserve"]["pid"] != before, 60)
    until(lambda: served_versions(served) == {"1": True, "2": True}, 120)
    assert answers_again(served, "1")
    assert answers_again(served, "2")
    assert "NOT LOADED: flights 8" in (online.home().logs / "torchserve.log").read_text()
    served.retire("flights", "8")


def served_versions(endpoint: Endpoint) -> dict[str, bool]:
    try:
        return endpoint.versions("flights")
    except Unavailable:
        return {}


def test_management_listens_on_loopback_only(online, served):
    java = psutil.Process(online.state()["parts"]["torchserve"]["pid"])
    assert {c.laddr.ip.removeprefix("::ffff:") for c in java.net_connections("tcp") if c.status == "LISTEN"} == {
        "127.0.0.1"
    }


def test_nothing_of_it_outlives_the_stack(online, served):
    everything = [*processes(online, "torchserve"), *processes(online, "shipper")]
    assert len(everything) >= 4
    online.stop()
    assert wait_until_ended(everything, 0) == []
