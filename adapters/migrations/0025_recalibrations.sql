-- A champion's answers are kept right on average by versions that differ from it in one number. Many versions share one
-- network, the version that was trained: what monitoring says of one it says of all of them.

create table recalibrations (      -- one per decision that asked for it
    decision_id text primary key references decisions,
    use_case text not null,
    network_version text not null, -- the version that was trained
    as_of timestamptz not null,
    intercept double precision not null,  -- added to the logit of what the network answers
    evidence jsonb not null,       -- before, standard_error, gain, rows, days, dispersion, snapshot_version
    state text not null check (state in ('pending', 'done', 'superseded')),
    model_version text,            -- the version that has it; null: none was made
    changed_at timestamptz not null default now(),
    check ((state = 'done') = (model_version is not null))
);
create unique index one_recalibration_in_flight on recalibrations (use_case) where state = 'pending';
create unique index recalibrated_versions on recalibrations (use_case, model_version);

create view network_predictions as  -- each prediction, the network that made it, and what was added to its logit
select p.*, coalesce(r.network_version, p.model_version) as network_version, coalesce(r.intercept, 0) as intercept
from predictions p left join recalibrations r using (use_case, model_version);

alter table ledger drop constraint ledger_action_check;
alter table ledger add constraint ledger_action_check check (action in (
    'promote', 'recalibrate', 'hold', 'refuse', 'need-more-data', 'superseded', 'approve', 'reject', 'rollback',
    'deploy', 'deploy-refused', 'deploy-held', 'deploy-reverted', 'deploy-superseded',
    'experiment-start', 'experiment-end'));

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on recalibrations, network_predictions to observer;
    end if;
end $$;
