"""The shipped use case that tests are about, alone: others that params.yaml declares change nothing of them."""

from typing import Any

import yaml

from pipeline.settings import REPOSITORY


def read_shipped_params() -> dict[str, Any]:
    """params.yaml with this one block, to be changed and written elsewhere."""
    return {"flights": yaml.safe_load((REPOSITORY / "params.yaml").read_text())["flights"]}
