"""The numbers of following a source, of the events that are answered by themselves, and of their webhook.

Where a source has a clock of its own, seconds between two moments of it are seconds of that clock.
"""

from infra.prometheus.metric_query import MetricQuery

STREAM_QUERIES = (
    MetricQuery(
        {
            "stream_known_until_timestamp_seconds": "Until when the stream knows all of its source, by its time",
            "stream_silent_seconds": "Since the stream last wrote how far it is",
        },
        ("use_case",),
        """
        select use_case, extract(epoch from known_until) as stream_known_until_timestamp_seconds,
            extract(epoch from now() - moved_at) as stream_silent_seconds
        from stream_state""",
    ),
    # Slots are their server's own: of a source on another server nothing is seen here (`reconcile` looks there).
    MetricQuery(
        {
            "stream_slot_active": "1 where somebody reads the slot, else 0",
            "stream_slot_retained_bytes": "Log that the source keeps because of the slot",
            "stream_slot_behind_bytes": "Log that the stream has not taken yet",
        },
        ("use_case",),
        """
        select use_case, active::int as stream_slot_active,
            pg_current_wal_lsn() - restart_lsn as stream_slot_retained_bytes,
            pg_current_wal_lsn() - confirmed_flush_lsn as stream_slot_behind_bytes
        from stream_state join pg_replication_slots on slot_name = 'windsock_' || use_case""",
    ),
    MetricQuery(
        {
            "due_events": "Events whose prediction time has passed, and that are not answered yet",
            "due_events_seconds": "Since the prediction time of the oldest of these, by the source's time; 0: none",
            "refused_events": "Events that the server refuses to answer until their entry is changed",
        },
        ("use_case",),
        """
        select s.use_case, due.due_events, refused.refused_events,
            coalesce(extract(epoch from s.known_until - due.oldest), 0) as due_events_seconds
        from stream_state s, lateral (
            select count(*) as due_events, min(prediction_time) as oldest from known_events k
            where k.use_case = s.use_case and k.problem is null and k.prediction_time < s.known_until) as due, lateral (
            select count(*) as refused_events from known_events k
            where k.use_case = s.use_case and k.problem is not null) as refused
        where s.answers_since is not null""",
    ),
    MetricQuery(
        {
            "newest_answers": "Events answered by themselves: the newest 1,000 by prediction time",
            "newest_answers_in_time": "Of these, the ones that were answered in time",
        },
        ("use_case",),
        """
        select s.use_case, newest.* from stream_state s, lateral (
            select count(*) as newest_answers, count(*) filter (where in_time) as newest_answers_in_time
            from (
                select in_time from answers_in_time a where a.use_case = s.use_case
                order by use_case desc, prediction_time desc limit 1000
            ) as latest) as newest
        where s.answers_since is not null""",
    ),
    MetricQuery(
        {
            "undelivered_answers": "Answers on their way to the webhook",
            "undelivered_seconds": "Since the oldest of these was given, by the clock; 0: none is on its way",
            "undeliverable_answers": "Answers that the webhook's receiver refused",
        },
        ("use_case",),
        """
        select s.use_case, waiting.undelivered_answers, refused.undeliverable_answers,
            coalesce((
                select extract(epoch from now() - a.made_at)
                from answer_deliveries d join answers_in_time a using (use_case, entity_key, event_time)
                where d.use_case = s.use_case and d.status = 'waiting' order by d.number limit 1
            ), 0) as undelivered_seconds
        from stream_state s, lateral (
            select count(*) as undelivered_answers from answer_deliveries d
            where d.use_case = s.use_case and d.status = 'waiting') as waiting, lateral (
            select count(*) as undeliverable_answers from answer_deliveries d
            where d.use_case = s.use_case and d.status = 'undeliverable') as refused
        where s.answers_since is not null""",
    ),
)
