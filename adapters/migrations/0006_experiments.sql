-- Two versions under a declared comparison, and every look at it.

create table experiments (         -- at most one has the candidate's place at the gateway; ended rows keep their outcome
    experiment_id text primary key,
    use_case text not null,
    control text not null,         -- the stable version
    treatment text not null check (treatment <> control),
    settings jsonb not null,       -- the spec's blocks as declared at the start: later edits do not reach in
    costs jsonb not null,
    started_by text not null,
    started_at timestamptz not null default now(),
    outcome text check (outcome in
        ('treatment-better', 'control-better', 'undecided', 'stopped-by-guardrail', 'stopped', 'interrupted')),
    reason text,
    ended_by text,
    ended_at timestamptz,
    settled_at timestamptz,        -- when the candidate's place was free again
    check ((outcome is null) = (ended_at is null)),
    check (settled_at is null or ended_at is not null)
);
create unique index one_experiment_at_a_time on experiments (use_case) where settled_at is null;

create table experiment_looks (    -- look 0 is the start; two looks at the same data are one row
    experiment_id text not null references experiments,
    look int not null,
    looked_at timestamptz not null default now(),
    requests_until timestamptz not null,   -- of the gateway's records, those up to here are counted
    requests bigint not null,      -- of the treatment so far, by the gateway
    errors bigint not null,
    answers bigint not null,       -- of the treatment so far, in the prediction log
    degraded bigint not null,
    control_events bigint not null,        -- with a known outcome, each once
    treatment_events bigint not null,
    control_units bigint not null,
    treatment_units bigint not null,
    control_cost double precision not null,    -- sums
    treatment_cost double precision not null,
    difference double precision,   -- extra cost of the treatment per event; null: nothing to compare
    error double precision,
    low double precision,          -- the interval that holds at all looks together
    high double precision,
    decision text not null check (decision in
        ('continue', 'treatment-better', 'control-better', 'undecided', 'stopped-by-guardrail')),
    reason text not null,
    share double precision not null,       -- of the treatment from this look on
    routed_at timestamptz,         -- when the gateway had it; null: not yet
    primary key (experiment_id, look)
);

alter table ledger drop constraint ledger_action_check;
alter table ledger add constraint ledger_action_check check (action in (
    'promote', 'hold', 'need-more-data', 'superseded', 'approve', 'reject', 'rollback',
    'deploy', 'deploy-refused', 'deploy-held', 'deploy-reverted', 'deploy-superseded',
    'experiment-start', 'experiment-end'));
