"""A use case with an experiment, a gateway of ten lines, and a dataset that tells of what became of the events."""

from datetime import timedelta

import pytest

from pipeline.spec import UseCase
from tasks.deploy.experiment import experiment
from tests.tasks.deploy.experiment.planting import DECLARED, EVENT_TIME, FakeGateway, build_dataset


@pytest.fixture
def use_case(use_case) -> UseCase:
    return use_case.model_copy(update={"experiment": DECLARED})


@pytest.fixture
def gateway(outside, monkeypatch) -> FakeGateway:
    monkeypatch.setattr(experiment, "admit_version", lambda *_: None)
    outside.__dict__["gateway"] = FakeGateway()
    build_dataset(outside, "told", EVENT_TIME + timedelta(days=7))
    return outside.gateway
