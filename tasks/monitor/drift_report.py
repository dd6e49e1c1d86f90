"""The drift report people read: Evidently's HTML and its numbers, from samples, after the decision it belongs to.

The method is pinned to PSI and each threshold to ours: Evidently's own defaults change with the size of the reference
and called 60 % of runs without drift drifted (measured). Its bins are of equal width where ours are quantiles, so its
numbers differ from ours for continuous features and agree for discrete ones; ours decide.
"""

import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adapters.connect import Outside
from adapters.parquet import from_bytes, to_bytes
from pipeline.monitoring import Monitor
from pipeline.spec import UseCase
from tasks.monitor.drift import has_values, psi_threshold

_DECIDED = """
select as_of, model_version, evidence -> 'report' as report from decisions
where use_case = %s and evidence ->> 'report' is not null order by as_of desc"""
SAMPLE_ROWS = 5000  # 5 s for 55 features; Evidently's maintainers advise samples


def draw_sample(table: pa.Table, rows: int = SAMPLE_ROWS) -> pa.Table:
    """At most so many rows, evenly spread over the table, always the same ones."""
    if table.num_rows <= rows:
        return table
    return table.take(pa.array(np.linspace(0, table.num_rows - 1, rows).astype(np.int64)))


def comparable_features(profile: dict[str, Any], reference: pa.Table, current: pa.Table) -> list[str]:
    """Profiled features with values on both sides; Evidently raises on others, which are broken and reported so."""
    shared = [n for n in profile["features"] if n in reference.column_names and n in current.column_names]
    return [name for name in shared if has_values(reference[name]) and has_values(current[name])]


def draw_report(
    profile: dict[str, Any], reference: pa.Table, current: pa.Table, monitor: Monitor
) -> tuple[str, dict[str, float]]:
    """Evidently's report of two tables as (HTML, PSI by feature), each drawn down to a sample first."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = comparable_features(profile, reference, current)
    numeric = [name for name in names if profile["features"][name]["kind"] != "text"]
    definition = DataDefinition(
        numerical_columns=numeric, categorical_columns=[name for name in names if name not in numeric]
    )
    frames = [draw_sample(table.select(names)).to_pandas() for table in (current, reference)]
    for frame in frames:
        frame[numeric] = frame[numeric].astype("float64").replace([np.inf, -np.inf], np.nan)  # it raises on infinity
    preset = DataDriftPreset(
        columns=names,
        per_column_method=dict.fromkeys(names, "psi"),
        per_column_threshold={name: psi_threshold(profile["features"][name], monitor) for name in names},
    )
    run = Report([preset]).run(*(Dataset.from_pandas(frame, data_definition=definition) for frame in frames))
    metrics = [metric for metric in run.dict()["metrics"] if "column" in metric["config"]]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "drift.html"
        run.save_html(str(path))
        return path.read_text(), {metric["config"]["column"]: float(metric["value"]) for metric in metrics}


@dataclass(frozen=True, kw_only=True)
class ReportSamples:
    """What a report is drawn from, as kept in the lake, and the address that the report will have."""

    reference_uri: str
    current_uri: str
    report_uri: str


def keep_samples(
    use_case: UseCase, as_of: datetime, profile: dict[str, Any], tables: tuple[pa.Table, pa.Table], outside: Outside
) -> ReportSamples | None:
    """Keep what a report of (reference, current) is drawn from; None if nothing compares."""
    reference, current = (draw_sample(table) for table in tables)
    names = comparable_features(profile, reference, current)
    if not names:
        return None
    folder = f"reports/{use_case.name}/{as_of.astimezone(UTC):%Y-%m-%dT%H%M}"
    before, now = (outside.lake.put(folder, to_bytes(each.select(names)), ".parquet") for each in (reference, current))
    name = f"drift-{before.sha256[:8]}-{now.sha256[:8]}.html"
    return ReportSamples(reference_uri=before.uri, current_uri=now.uri, report_uri=outside.lake.uri(f"{folder}/{name}"))


def draw_reports(use_case: UseCase, outside: Outside) -> int:
    """Draw the report of each decision that has none yet, and put it, and its numbers, into the lake; the newest first.

    How many were drawn. Nothing waits for them: a decision is made, and acted upon, before. A decision whose samples
    are no longer there (the lake's own rules delete what is old) never gets one.
    """
    there = set(outside.lake.list(f"reports/{use_case.name}/"))
    drawn = 0
    for row in outside.warehouse.query(_DECIDED, (use_case.name,)):
        samples = ReportSamples(**row["report"])
        if samples.report_uri in there or not {samples.reference_uri, samples.current_uri} <= there:
            continue
        profile = outside.registry.profile(use_case.name, row["model_version"])
        reference, current = (
            from_bytes(outside.lake.read(uri)) for uri in (samples.reference_uri, samples.current_uri)
        )
        html, values = draw_report(profile, reference, current, use_case.monitor)
        key = samples.report_uri.removeprefix(outside.lake.uri("")).removesuffix(".html")
        outside.lake.put_text(f"{key}.json", json.dumps(values, indent=1), "application/json")
        outside.lake.put_text(f"{key}.html", html, "text/html; charset=utf-8")
        drawn += 1
    return drawn
