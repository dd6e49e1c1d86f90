"""How well the models do: batch scores by window, and what was served, with the same restated beside it."""

from infra.prometheus.metric_query import MetricQuery

# Every version that predicted in a use case's newest window: a champion of today has none of its own yet.
_NEWEST_WINDOW = """
select distinct on (use_case, model_version) performance.* from performance
where (use_case, window_end) in (select use_case, max(window_end) from performance group by 1)
order by use_case, model_version, measured_as_of desc
"""
_MEASURED = """
select use_case, model_version, 'restated' as basis, window_end, measured_as_of, metrics from performance
where status in ('ok', 'degraded')
union all
select use_case, model_version, 'served', window_end, measured_as_of, metrics from served_performance
where status in ('ok', 'degraded') and is_judged
"""
# What was answered in a champion's time, where that was judged; what batch has of any other version.
_NEWEST_MEASURED = f"""
select distinct on (use_case, model_version) * from ({_MEASURED}) as measured
where (use_case, window_end) in (select use_case, max(window_end) from ({_MEASURED}) as every group by 1)
order by use_case, model_version, basis = 'served' desc, measured_as_of desc
"""
_FIRST = f"""
select distinct on (use_case, model_version, basis) * from ({_MEASURED}) as measured
order by use_case, model_version, basis, window_end, measured_as_of desc
"""
_NEWEST_SERVED = """
select distinct on (use_case, model_version) served_performance.* from served_performance
where (use_case, window_end) in (select use_case, max(window_end) from served_performance group by 1)
order by use_case, model_version, measured_as_of desc
"""
PERFORMANCE_QUERIES = (
    MetricQuery(
        {
            "label_coverage": "Share of a version's predictions in the newest window whose label is known",
            "predicted_rows": "Its predictions in that window",
            "performance_window_end_timestamp_seconds": "End of that window, in data time",
        },
        ("use_case", "model_version"),
        f"""
        select use_case, model_version, coverage as label_coverage, predicted as predicted_rows,
            extract(epoch from window_end) as performance_window_end_timestamp_seconds
        from ({_NEWEST_WINDOW}) as newest
        """,
    ),
    MetricQuery(
        {"performance": "A metric of a version in the newest window with enough labels: served where that was judged"},
        ("use_case", "model_version", "metric", "basis"),
        f"""
        select use_case, model_version, basis, key as metric, value::float8 as performance
        from ({_NEWEST_MEASURED}) as newest, jsonb_each_text(metrics)
        """,
    ),
    MetricQuery(
        {"first_performance": "The same metric in the first window of that version that had enough labels"},
        ("use_case", "model_version", "metric", "basis"),
        f"""
        select first.use_case, first.model_version, basis, key as metric, value::float8 as first_performance
        from ({_FIRST}) as first join ({_NEWEST_MEASURED}) as newest using (use_case, model_version, basis),
            jsonb_each_text(first.metrics)
        """,
    ),
    MetricQuery(
        {
            "served_coverage": "Share of the labelled events of a champion's newest window that were answered in time",
            "served_judged": "1 where these answers were judged, 0 where batch scores were, for they were too few",
            "late_answers": "Labelled events of that window that were answered too late",
        },
        ("use_case", "model_version"),
        f"""
        select use_case, model_version, coverage as served_coverage, is_judged::int as served_judged,
            late as late_answers
        from ({_NEWEST_SERVED}) as newest
        """,
    ),
    MetricQuery(
        {
            "expected_performance": "A metric of the newest partition as it is expected before its labels come",
            "expected_performance_low": "From where its interval goes",
            "expected_performance_high": "And up to where",
            "expected_performance_trusted": "1 where such estimates have held, and may lead to a retraining",
        },
        ("use_case", "model_version", "metric"),
        """
        with newest as (
            select distinct on (use_case) * from expected_performance order by use_case, window_end desc, measured_as_of
        )
        select use_case, model_version, key as metric, (value ->> 'value')::float8 as expected_performance,
            (value ->> 'low')::float8 as expected_performance_low,
            (value ->> 'high')::float8 as expected_performance_high,
            (value ->> 'trust' = 'trusted')::int as expected_performance_trusted
        from newest, jsonb_each(expected)
        """,
    ),
    MetricQuery(
        {"restated_performance": "The metric of the same events by the same versions, on the features made since"},
        ("use_case", "model_version", "metric"),
        f"""
        select use_case, model_version, key as metric, value::float8 as restated_performance
        from ({_NEWEST_SERVED}) as newest, jsonb_each_text(restated_metrics)
        """,
    ),
)
