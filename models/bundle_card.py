"""What a bundle says of its model, read without torch, which takes seconds to load and most tasks do without."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 2
KEYS = {
    "format",
    "use_case",
    "kind",
    "features",
    "config",
    "members",
    "recipe",
    "data",
    "metrics",
    "versions",
    "files",
}
# keys of those cards only whose model has one
INTERVAL = "interval"  # a `models.interval.ConformalInterval`
RECALIBRATION = "recalibration"  # a `models.recalibration.Recalibration`


def read_card(folder: Path) -> Mapping[str, Any]:
    """What a bundle is and where it comes from, without its weights.

    Raises:
        ValueError: it is no card of this format.
    """
    try:
        card = json.loads((folder / "card.json").read_bytes())
    except ValueError as error:
        raise ValueError(f"bundle {folder}: card.json is not JSON: {error}") from error
    if not isinstance(card, dict) or set(card) - {INTERVAL, RECALIBRATION} != KEYS or card["format"] != FORMAT:
        raise ValueError(f"bundle {folder}: card.json is not a card of format {FORMAT}")
    return card


def read_definition(folder: Path) -> str:
    """The feature definition in a bundle, as JSON text; its digest is in the card."""
    return (folder / "features.json").read_text()
