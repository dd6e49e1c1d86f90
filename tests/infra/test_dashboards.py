"""The dashboards are what Grafana's provisioning expects; that their panels show something is shown in tests/e2e."""

import re

import yaml

from pipeline.settings import REPOSITORY
from tests.dashboards import BOARDS, RULES, asked, selectors

FOLDER = REPOSITORY / "infra" / "grafana"
SOURCES = yaml.safe_load((FOLDER / "provisioning" / "datasources" / "windsock.yaml").read_text())["datasources"]


def test_there_are_three_for_three_kinds_of_people() -> None:
    assert BOARDS.keys() == {"business", "engineering", "science"}
    assert len({board["uid"] for board in BOARDS.values()}) == 3


def test_every_panel_asks_a_source_that_is_provisioned_in_its_own_language() -> None:
    known = {source["uid"]: source["type"] for source in SOURCES}
    for board in BOARDS.values():
        for panel in board["panels"]:
            assert known[panel["datasource"]["uid"]] == panel["datasource"]["type"]
            key = "expr" if panel["datasource"]["uid"] == "prometheus" else "rawSql"
            assert all(target[key] for target in panel["targets"]), panel["title"]


def test_no_two_panels_share_a_place_a_name_or_a_number() -> None:
    for board in BOARDS.values():
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert all((x % 8, y % 8) == (0, 0) and x < 24 for x, y in places)
        for values in (places, [p["title"] for p in board["panels"]], [p["id"] for p in board["panels"]]):
            assert len(set(values)) == len(board["panels"])


def test_the_source_of_sql_reads_by_the_role_that_may_read_little() -> None:
    [warehouse] = [source for source in SOURCES if source["uid"] == "warehouse"]
    assert warehouse["user"] == "observer"
    assert re.fullmatch(r"\$\w+", warehouse["secureJsonData"]["password"])  # from the environment


def test_what_is_asked_is_found() -> None:
    assert len(list(asked(BOARDS, "flights"))) > 50
    assert not [a for a in asked(BOARDS, "flights") if "$" in a.query]
    assert selectors('rate(haproxy_a_total{code="5xx"}[5m]) > windsock_b and up == 0') == {
        'haproxy_a_total{code="5xx"}',
        "windsock_b",
        "up",
    }
    assert all(selectors(rule["expr"]) for rule in RULES)


def test_pages_name_panels_that_are_there() -> None:
    titles = {panel["title"] for board in BOARDS.values() for panel in board["panels"]}
    for rule in RULES:
        page = (REPOSITORY / rule["annotations"]["runbook"]).read_text()
        for sentence in re.findall(r"Dashboard \*[a-z ]+\*: (.*?)\n\d\.", page, re.DOTALL):
            named = re.findall(r"\*([A-Z][^*]+)\*", " ".join(sentence.split()))
            assert set(named) <= titles, (rule["alert"], set(named) - titles)
