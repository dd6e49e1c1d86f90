"""From a table, by two commands and one file of answers, to a model that was judged, let in, and answers clients.

In a copy of the repository with a stack of its own, as a person has it: real PostgreSQL, S3, MLflow, TorchServe and
gateway. What is typed is in `docs/bring-your-own-table.md`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from adapters.gateway import Gateway
from infra.local.home import inherited_environment
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY
from tests.infra.new_use_case_world import ANSWERS, ORDERS, Copy, make_copy

# A small search, and the patience of a machine that does other things as well.
LIGHTER = {
    "trials: 9": "trials: 3",
    "rungs: [2, 5, 10]": "rungs: [2, 5]",
    "store_timeout_ms: 500": "store_timeout_ms: 5000",
    "max_p99_ms: 250": "max_p99_ms: 5000",
}


@pytest.fixture(scope="module")
def copy(processes: None) -> Iterator[Copy]:
    """The copy, its stack, and the table in its source."""
    folder = Path(tempfile.mkdtemp(prefix="windsock-copy-"))
    folder.chmod(0o755)  # PostgreSQL runs as nobody when the tests run as root
    (folder / "copy").mkdir()
    bare, stack = make_copy(folder / "copy", inherited_environment()), Stack(folder / "home")
    for script in ("stack_of.py", "champion_of.py"):
        shutil.copy(REPOSITORY / "tests" / "infra" / script, bare.root / script)
    try:
        started = bare.run("stack_of.py", str(stack.folder), str(os.getpid()))
        assert started.returncode == 0, started.stderr
        environment = stack.environment()
        if "WINDSOCK_GATEWAY_URL" not in environment:
            pytest.skip("no HAProxy here: apt-get install haproxy")
        with closing(psycopg2.connect(environment["WINDSOCK_SOURCE_DSN"])) as source, source, source.cursor() as at:
            at.execute(ORDERS)
        yield Copy(root=bare.root, environment={**bare.environment, **environment})
    finally:
        stack.stop()
        if not os.environ.get("WINDSOCK_KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(900)
def test_a_table_of_many_types_comes_to_a_deployed_model_that_answers_as_in_batch(copy: Copy) -> None:
    assert copy.write_use_case("shop", ANSWERS).returncode == 0
    copy.fill_blanks("shop")
    checked = copy.check("shop")
    assert checked.returncode == 0, checked.stdout + checked.stderr

    head, _, block = (copy.root / "params.yaml").read_text().partition("\nshop:\n")
    for written, lighter in LIGHTER.items():
        assert block.count(written) == 1
        block = block.replace(written, lighter)
    (copy.root / "params.yaml").write_text(f"{head}\nshop:\n{block}")

    done = copy.run("champion_of.py", "shop")
    assert done.returncode == 0, done.stderr[-4000:]
    promoted, deployed, asked = done.stdout.splitlines()[-3:]
    assert promoted.startswith("shop: promoted"), done.stdout[-4000:]
    assert "version 2 answers everyone" in deployed, "the winner, refitted"

    e, past = copy.environment, json.loads(asked)
    maps = Path(e["WINDSOCK_GATEWAY_MAPS"])
    gateway = Gateway(e["WINDSOCK_GATEWAY_URL"], e["WINDSOCK_GATEWAY_ADMIN"], maps, e["WINDSOCK_GATEWAY_KEY"])
    assert len(past["events"]) == 3
    for event, score in zip(past["events"], past["scores"], strict=True):
        reply = gateway.ask("shop", event)
        assert reply.status == 200, reply.body
        assert (reply.body["model_version"], reply.body["degraded"]) == ("2", False)
        assert reply.body["probability"] == pytest.approx(score, abs=1e-5)
