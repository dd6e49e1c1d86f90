"""Drift of every feature of a table: our PSI against Evidently's, on all rows.

    python -m benchmarks.drift [--rows 200000] [--features 40] [--rounds 3]

The rows are the features of the flights of 2013: the first half of the year is the reference, the second is judged,
each repeated to the number of rows. Ours takes the reference's profile once, at training; Evidently bins it anew in
every run, so both are told. Both measure PSI of every numeric feature.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pyarrow as pa

from benchmarks.quality import year
from benchmarks.table import Measured, keep, table
from features import definition
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.build_features.profile import make_profile
from tasks.monitor.drift import measure_drift

OURS, PROFILED, THEIRS = "PSI of all features (ours)", "the same, and the profile", "Evidently, PSI"


def evidently(reference: pa.Table, judged: pa.Table, names: Sequence[str]) -> dict[str, float]:
    """Feature -> Evidently's PSI."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    columns = DataDefinition(numerical_columns=list(names))
    parts = [Dataset.from_pandas(rows.select(list(names)).to_pandas(), columns) for rows in (judged, reference)]
    preset = DataDriftPreset(columns=list(names), per_column_method=dict.fromkeys(names, "psi"))
    found = Report([preset]).run(*parts).dict()
    return {
        str(metric["config"]["column"]): float(metric["value"])
        for metric in found["metrics"]
        if "column" in metric["config"]
    }


def halves(rows: pa.Table, count: int) -> tuple[pa.Table, pa.Table]:
    """(first half of the year, second half), each so many rows."""
    middle = rows.num_rows // 2
    parts = rows.slice(0, middle), rows.slice(middle)
    first, second = (pa.concat_tables([part] * -(-count // part.num_rows)).slice(0, count) for part in parts)
    return first, second


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__)
    for name, default in {"rows": 200_000, "features": 40, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--table", type=Path, default=Path("build/benchmarks/flights-2013.parquet"))
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    use_case = use_cases(REPOSITORY / "params.yaml")["flights"]
    names = definition("flights").numeric[: asked.features]
    kept = ["prediction_time", "label_time", *names]
    reference, judged = halves(year(use_case, asked.table).select(kept), asked.rows)
    measured = {name: Measured(name=name) for name in (OURS, PROFILED, THEIRS)}
    for _ in range(asked.rounds):
        with measured[PROFILED].timed():
            known = make_profile(reference, use_case)
            measure_drift(known, judged, use_case.monitor)
        with measured[OURS].timed():
            ours = {
                one.feature: one.value for one in measure_drift(known, judged, use_case.monitor) if one.measure == "psi"
            }
        with measured[THEIRS].timed():
            theirs = evidently(reference, judged, names)
    assert set(theirs) == set(names)
    moved = sum(value is not None and value > 0.1 for value in ours.values())
    print(f"beyond 0.1: {moved} features by ours, {sum(value > 0.1 for value in theirs.values())} by Evidently")
    for one in measured.values():
        one.facts["rows/s"] = f"{asked.rows / median(one.wall):,.0f}"
    print(table(list(measured.values()), ours=OURS))
    print(keep(f"drift, {asked.rows} rows", list(measured.values()), asked.into, rows=asked.rows, features=len(names)))


if __name__ == "__main__":
    main()
