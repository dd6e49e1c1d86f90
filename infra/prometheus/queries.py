"""The numbers of the warehouse: SQL whose columns are labels and, under their own names, metrics."""

from infra.prometheus.metric_query import MetricQuery
from infra.prometheus.performance_queries import PERFORMANCE_QUERIES

_CURRENT = """
select distinct on (use_case, table_name, partition_start) use_case, table_name, partition_start, partition_end,
    status, raw_rows, quarantined_rows, validated_at
from batches order by use_case, table_name, partition_start, version desc
"""
# The last answer a client got about each event counts, once its label had its time: of newer events the outcomes are of
# the kind that comes soon. 28 days of data time, so that a scrape does not read a year. Takes use cases and label lags.
_ANSWERED = """
select distinct on (use_case, entity_key, event_time) use_case, model_version, decision, score, label, features
from (
    select distinct on (use_case) use_case, "end" - lag as until
    from snapshots join unnest(%s::text[], %s::interval[]) as declared (use_case, lag) using (use_case)
    order by use_case, build_order desc) as mature
join online_answers a using (use_case) join outcomes o using (use_case, entity_key, event_time)
where a.prediction_time < until and a.prediction_time >= until - interval '28 days'
    and a.slot in ('stable', 'candidate')
order by use_case, entity_key, event_time, answered_at desc
"""

QUERIES = (
    MetricQuery(
        {
            "feed_clean_until_timestamp_seconds": "End of the newest clean partition, in data time",
            "feed_validated_timestamp_seconds": "When the newest clean partition was found so, by the clock",
            "feed_behind_seconds": "Data time by which the newest clean partition is behind the use case's newest one",
            "feed_blocked_partitions": "Partitions whose current content is blocked",
        },
        ("use_case", "table"),
        f"""
        with current as ({_CURRENT}), reached as (select use_case, max(partition_end) as until from current group by 1),
        feeds as (
            select use_case, table_name as "table", min(partition_start) as begun,
                max(partition_end) filter (where status = 'clean') as clean_until,
                (array_agg(validated_at order by partition_end desc) filter (where status = 'clean'))[1] as validated,
                count(*) filter (where status = 'blocked') as feed_blocked_partitions
            from current group by 1, 2
        )
        select *, extract(epoch from clean_until) as feed_clean_until_timestamp_seconds,
            extract(epoch from validated) as feed_validated_timestamp_seconds,
            extract(epoch from until - coalesce(clean_until, begun)) as feed_behind_seconds
        from feeds join reached using (use_case)
        """,
    ),
    MetricQuery(
        {"quarantined_share": "Rows of the newest clean partition that were quarantined, of all its rows"},
        ("use_case", "table"),
        f"""
        with current as ({_CURRENT})
        select distinct on (use_case, table_name) use_case, table_name as "table",
            quarantined_rows::float8 / nullif(raw_rows, 0) as quarantined_share
        from current where status = 'clean' order by use_case, table_name, partition_start desc
        """,
    ),
    MetricQuery(
        {"quarantined_rows": "Rows that wait in quarantine for a correction"},
        ("use_case", "table"),
        """
        select use_case, table_name as "table", count(*) as quarantined_rows
        from quarantine where status = 'quarantined' group by 1, 2
        """,
    ),
    MetricQuery(
        {"retakes_total": "Partitions whose rows changed after they were taken, or that nobody had taken"},
        ("use_case", "reason"),
        "select use_case, reason, count(*) as retakes_total from retakes group by 1, 2",
    ),
    MetricQuery(
        {
            "drift": "How far a feature, or the score, is from the champion's training data: PSI, or share missing",
            "drift_threshold": "The calibrated threshold of that measure",
        },
        ("use_case", "model_version", "feature", "measure"),
        """
        select use_case, model_version, feature, measure, value as drift, threshold as drift_threshold
        from drift where (use_case, as_of) in (select use_case, max(as_of) from drift group by 1)
        """,
    ),
    MetricQuery(
        {"drift_unknown": "Measures of the newest partition that could not be taken, which is never healthy"},
        ("use_case",),
        """
        select use_case, count(*) filter (where status = 'unknown') as drift_unknown
        from drift where (use_case, as_of) in (select use_case, max(as_of) from drift group by 1) group by 1
        """,
    ),
    *PERFORMANCE_QUERIES,
    MetricQuery(
        {"decisions_total": "Decisions of monitoring, one a partition"},
        ("use_case", "decision"),
        """
        select use_case, decision, count(d.decision_id) as decisions_total
        from champions cross join unnest(array['ignore', 'alert', 'retrain', 'block']) as decision
        left join decisions d using (use_case, decision) group by 1, 2
        """,
    ),
    MetricQuery(
        {"retrains_30_days": "Decisions to retrain in the newest 30 days, of data time"},
        ("use_case",),
        """
        select d.use_case, count(r.decision_id) as retrains_30_days from decisions d
        join (select use_case, max(as_of) as newest from decisions group by 1) as last using (use_case)
        left join retrains r on r.decision_id = d.decision_id and r.challenger is null
        where d.as_of > newest - interval '30 days' group by 1
        """,
    ),
    MetricQuery(
        {"ledger_entries_total": "Promotions, refusals, rollouts and rollbacks"},
        ("use_case", "action"),
        "select use_case, action, count(*) as ledger_entries_total from ledger group by 1, 2",
    ),
    MetricQuery(
        {"alerts_total": "Alerts that were raised", "open_alerts": "Alerts that are not resolved"},
        ("use_case", "tier"),
        """
        select coalesce(use_case, '') as use_case, tier, count(*) as alerts_total,
            count(*) filter (where resolved_at is null) as open_alerts
        from alerts group by 1, 2
        """,
    ),
    MetricQuery(
        {"training_seconds_total": "Time that training took", "trials_total": "Configurations that were tried"},
        ("use_case", "step", "device"),
        """
        select use_case, step, device, sum(seconds) as training_seconds_total, sum(trials) as trials_total
        from costs group by 1, 2, 3
        """,
    ),
    MetricQuery(
        {
            "online_looked_timestamp_seconds": "When `watch` last looked at what answers, or since when that does",
            "online_p99_seconds": "99 % of the newest requests were answered within, by the gateway",
            "online_requests": "Requests that look judged",
            "online_errors": "Of these, failed or answered by the static answer",
            "online_lost_answers": "Answers that the prediction log has lost so far",
        },
        ("use_case", "model_version"),
        """
        with newest as (select distinct on (use_case) * from online_watch order by use_case, looked_at desc),
        answering as (select use_case, min(finished_at) as since from deployments where outcome = 'full' group by 1)
        select use_case, coalesce(model_version, '') as model_version,
            extract(epoch from coalesce(looked_at, since)) as online_looked_timestamp_seconds,
            p99_ms / 1000 as online_p99_seconds,
            requests as online_requests, errors as online_errors, lost as online_lost_answers
        from newest full join answering using (use_case)
        """,
    ),
    MetricQuery(
        {
            "postgres_connections": "Connections to a database",
            "postgres_commits_total": "Transactions that were committed",
            "postgres_rollbacks_total": "Transactions that were rolled back",
            "postgres_deadlocks_total": "Deadlocks",
        },
        ("database",),
        """
        select datname as database, numbackends as postgres_connections, xact_commit as postgres_commits_total,
            xact_rollback as postgres_rollbacks_total, deadlocks as postgres_deadlocks_total
        from pg_stat_database where datname is not null
        """,
    ),
    MetricQuery(
        {
            "postgres_connections_limit": "Connections the server allows in all",
            "warehouse_bytes": "Size of the warehouse on disk",
        },
        (),
        """
        select current_setting('max_connections')::int as postgres_connections_limit,
            pg_database_size(current_database()) as warehouse_bytes
        """,
    ),
)
# Of the use cases of params.yaml, and whether each is declared paused: two lists, side by side.
CHAMPIONS = MetricQuery(
    {
        "champion_present": "1 where a use case of params.yaml has a champion, else 0; none if paused without data",
        "champion_as_of_timestamp_seconds": "Data time from which the champion holds",
    },
    ("use_case",),
    """
    select use_case, (c.version is not null)::int as champion_present,
        extract(epoch from c.as_of) as champion_as_of_timestamp_seconds
    from unnest(%s, %s) as declared (use_case, paused) left join champions c using (use_case)
    where c.version is not null or not paused or exists (select from batches b where b.use_case = declared.use_case)
    """,
)
# Takes the use cases and their label lags.
DECISIONS = MetricQuery(
    {"decided_events": "Events answered online in the newest 28 days of mature outcomes, by what came of the decision"},
    ("use_case", "model_version", "outcome"),
    f"""
    select use_case, model_version, case when decision then case when label = 1 then 'hit' else 'needless' end
        else case when label = 1 then 'missed' else 'quiet' end end as outcome, count(*) as decided_events
    from ({_ANSWERED}) as answered where decision is not null group by 1, 2, 3
    """,
)
# And, after these, the use cases and the features by which their gates look at slices: two lists, side by side.
SLICES = MetricQuery(
    {
        "slice_events": "Events answered online in the same days, of a slice",
        "slice_squared_error": "Mean squared difference of answer and label: of probabilities, the Brier score",
        "slice_bias": "Mean answer less mean label",
    },
    ("use_case", "slice", "value"),
    f"""
    select use_case, slice, features ->> slice as value, count(*) as slice_events,
        avg((score - label) ^ 2) as slice_squared_error, avg(score - label) as slice_bias
    from ({_ANSWERED}) as answered join unnest(%s::text[], %s::text[]) as sliced (use_case, slice) using (use_case)
    where features ? slice group by 1, 2, 3
    """,
)
