"""A use case's definition and suites are those of the module of its name; another is refused with what to write."""

import sys
from types import ModuleType

import pytest

import expectations
import features


def test_the_shipped_ones_are_found_by_name() -> None:
    assert features.definition("flights").name == "flights"
    assert "weather" in expectations.suites("flights")


@pytest.mark.parametrize("name", ["nothing", "a-b", "../flights", "flights.x", ""])
def test_a_name_without_a_module_says_what_to_write(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no features for .*: write features/{name}.py"):
        features.definition(name)
    with pytest.raises(ValueError, match=rf"no expectations for use case .*: write expectations/{name}.py"):
        expectations.suites(name)


@pytest.mark.parametrize("name", ["engine", "vocabulary"])
def test_a_module_that_holds_none_is_no_use_case(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected one FeatureSet of that name in features/{name}.py, which has none"):
        features.definition(name)


def test_a_module_of_expectations_without_suites_is_no_use_case() -> None:
    with pytest.raises(ValueError, match=r"expected SUITES, a suite a table, in expectations/vocabulary\.py"):
        expectations.suites("vocabulary")


def test_a_definition_of_another_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("features.engine")
    module.SHOP = features.definition("flights")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "features.engine", module)
    module.__spec__ = sys.modules["features"].__spec__
    with pytest.raises(ValueError, match=r"which has SHOP \('flights'\)"):
        features.definition("engine")
