"""One commit's part of a backtest, run by its own code: features, a training as of a moment, and answers after it.

    python -m tasks.backtest.side request.json

It reads the files that the request names and writes into the folder that it names, and knows of nothing else.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import features
from models.bundle import Bundle
from models.ensemble import Recipe, fit_ensemble
from models.training import best_device, deterministic
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from serving.predictor import Predictor
from tasks.build_features import dataset

_KEY = ["entity_key", "event_time"]
ANSWERS, ABOUT = "answers.parquet", "about.json"


@dataclass(frozen=True, kw_only=True)
class SideRequest:
    """What both sides are asked alike. `recipe` is that of a model, without the columns, which are each side's own."""

    use_case: str
    files: dict[str, list[str]]
    start: str
    as_of: str
    until: str
    recipe: dict[str, Any]
    output: str


@dataclass(frozen=True, kw_only=True)
class AboutSide:
    """What a side did: which features, how many rows, and what it took."""

    features_digest: str
    columns: int
    training_rows: int
    features_seconds: float
    training_seconds: float


def run_side(request: SideRequest) -> AboutSide:
    """Build, train, answer; the answers [n] and the members' [n] go to the output folder, with key, times and label.

    Raises:
        ValueError: the definition cannot be built from these files, or there are no rows to learn from.
        TypeError: the recipe is none of this code's.
    """
    use_case = use_cases(REPOSITORY / "params.yaml")[request.use_case]
    as_of, until = datetime.fromisoformat(request.as_of), datetime.fromisoformat(request.until)
    definition, began = features.definition(use_case.name), time.monotonic()
    files = {name: [Path(path) for path in request.files[name]] for name in definition.sources}
    span = Interval(datetime.fromisoformat(request.start), until)
    points, labels = features.build(definition, files, span, use_case.time.lead, engine=use_case.engine)
    output, lag = Path(request.output), use_case.time.label_lag
    built_files = [[str(output / f"{kind}.parquet")] for kind in ("points", "labels")]
    for table, [path] in zip((points, labels), built_files, strict=True):
        pq.write_table(table, path)
    built = time.monotonic() - began
    # learnt and asked is what had its time to get a label, as in a training and in its holdout
    learnt = dataset.read_labelled(*built_files, start=span.start, end=as_of - lag, known_by=as_of)
    asked = dataset.read_labelled(*built_files, start=as_of, end=until - lag, known_by=until)
    if not learnt.num_rows or not asked.num_rows:
        raise ValueError(f"{learnt.num_rows} rows to learn from by {as_of}, {asked.num_rows} to be asked about")
    columns = {"numeric": list(definition.numeric), "categorical": list(definition.categorical)}
    recipe = Recipe.from_document({**request.recipe, **columns})
    began = time.monotonic()
    with deterministic(recipe.threads):
        ensemble = fit_ensemble(recipe, learnt, best_device())
    trained = time.monotonic() - began
    members = [Bundle(card={}, encoder=ensemble.encoder, members=(member,)) for member in ensemble.members]
    whole = Predictor(Bundle(card={}, encoder=ensemble.encoder, members=ensemble.members))
    answers = {"score": whole.predict(asked)}
    answers |= {f"member_{number}": Predictor(member).predict(asked) for number, member in enumerate(members)}
    kept = asked.select([*_KEY, "prediction_time", "label", *_slices(use_case, asked)])
    for name, values in answers.items():
        kept = kept.append_column(name, pa.array(np.asarray(values, np.float64)))
    about = AboutSide(
        features_digest=definition.digest(),
        columns=len(recipe.numeric) + len(recipe.categorical),
        training_rows=learnt.num_rows,
        features_seconds=built,
        training_seconds=trained,
    )
    pq.write_table(kept, output / ANSWERS)
    (output / ABOUT).write_text(json.dumps(asdict(about)))
    return about


def _slices(use_case: UseCase, rows: pa.Table) -> list[str]:
    return [name for name in use_case.gate.slices if name in rows.column_names]


def main(arguments: list[str]) -> int:
    """The command line, for `tasks.backtest` alone."""
    run_side(SideRequest(**json.loads(Path(arguments[0]).read_text())))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
