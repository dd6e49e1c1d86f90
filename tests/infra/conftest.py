"""What several of these files look at."""

import pytest

from tests.infra.compose_rules import Compose, parsed


@pytest.fixture
def compose() -> Compose:
    """The compose file, for a test to change."""
    return parsed()
