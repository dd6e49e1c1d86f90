-- Every verdict of the gate as a row, of dry runs, too: what earlier candidates showed, and how often the same days were
-- asked. `refuse` is an objection, or an effect expected below zero; `hold` is not sure.

create table verdicts (            -- append-only
    verdict_id text primary key,
    use_case text not null,
    candidate_version text not null,
    champion_version text,         -- null: judged against the best constant
    as_of timestamptz not null,
    answer text not null check (answer in ('promote', 'hold', 'refuse', 'need-more-data')),
    metric text not null,
    effect double precision,       -- a gain of the candidate, in units of the metric; null: not measured
    standard_error double precision,
    evidence_uri text not null,
    judged_at timestamptz not null default now()
);
create index verdicts_by_time on verdicts (use_case, as_of);
create trigger verdicts_are_append_only before update or delete on verdicts for each row execute function refuse_change();
create trigger verdicts_are_not_truncated before truncate on verdicts for each statement execute function refuse_change();

alter table ledger drop constraint ledger_action_check;
alter table ledger add constraint ledger_action_check check (action in (
    'promote', 'hold', 'refuse', 'need-more-data', 'superseded', 'approve', 'reject', 'rollback',
    'deploy', 'deploy-refused', 'deploy-held', 'deploy-reverted', 'deploy-superseded',
    'experiment-start', 'experiment-end'));
