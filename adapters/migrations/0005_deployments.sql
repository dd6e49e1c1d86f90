-- How versions come to answer online, and what they answered on the way.

create table deployments (         -- one row each time a version is brought to the server; finished rows never change
    deployment_id text primary key,    -- names the piece of work, so that asking again is the same deployment
    request_id text,               -- the run that began it or took it up last
    use_case text not null,
    kind text not null check (kind in ('rollout', 'rollback')),
    version text not null,
    previous_version text,         -- what answered when it began; null: nothing did
    revision bigint not null,      -- champions.revision it follows
    stage text not null check (stage in ('package', 'golden', 'shadow', 'canary', 'full', 'done')),
    outcome text check (outcome in ('full', 'refused', 'held', 'reverted', 'superseded')),
    archive_sha256 text,
    evidence jsonb not null default '{}',  -- stage -> what was seen there
    problem text,
    actor text not null,
    reason text not null,
    as_of timestamptz not null,    -- data time of the champion it follows
    started_at timestamptz not null default now(),
    stage_since timestamptz not null default now(),
    finished_at timestamptz,
    position bigint generated always as identity,
    check ((outcome is null) = (finished_at is null))
);
create unique index one_deployment_in_flight on deployments (use_case) where outcome is null;

create function refuse_change_of_finished() returns trigger language plpgsql as $$
begin
    if old.outcome is not null or tg_op = 'DELETE' then
        raise exception 'deployment % is finished: % refused', old.deployment_id, tg_op using errcode = 'restrict_violation';
    end if;
    return new;
end $$;
create trigger finished_deployments_stay before update or delete on deployments
    for each row execute function refuse_change_of_finished();
create trigger deployments_are_not_truncated before truncate on deployments
    for each statement execute function refuse_change();

create table shadow_pairs (        -- what two versions answered to the same request
    deployment_id text not null references deployments,
    request_id text not null,
    position int not null,         -- of the event in the request
    entity_key text not null,
    event_time timestamptz not null,
    stable_version text not null,
    stable_score double precision not null,
    candidate_version text not null,
    candidate_score double precision,      -- null: it did not answer
    paired_at timestamptz not null default now(),
    primary key (deployment_id, request_id, position)
);

create table online_watch (        -- one row a look at what answers; the last one says how far it looked
    use_case text not null,
    looked_at timestamptz not null,
    model_version text,            -- what the route named; null: nothing
    requests bigint not null,      -- of this version, by the gateway, in the window that was judged
    errors bigint not null,
    p99_ms double precision,
    answers bigint not null,       -- in the prediction log since the look before
    degraded bigint not null,
    store_silent bigint not null,  -- of these, because the feature store did not answer
    checked bigint not null,       -- recomputed from their logged features
    max_difference double precision,
    lost bigint not null,          -- answers the log has lost so far, in all
    findings text[] not null,
    primary key (use_case, looked_at)
);

create table online_quality (      -- one row a partition, version and restatement
    use_case text not null,
    partition_start timestamptz not null,
    model_version text not null,
    measured_as_of timestamptz not null,
    answers bigint not null,       -- distinct events answered; the last answer counts
    degraded bigint not null,
    labelled bigint not null,
    metrics jsonb not null,
    compared bigint not null,      -- with a batch score of the same event and version, answered on fresh features
    beyond bigint not null,        -- of these, further off than the tolerance
    max_difference double precision,
    max_stale_difference double precision, -- answered on older features or degraded: shown, not judged
    seen text not null,            -- names the answers, labels and scores it was measured by
    primary key (use_case, partition_start, model_version, measured_as_of)
);

alter table ledger drop constraint ledger_action_check;
alter table ledger add constraint ledger_action_check check (action in (
    'promote', 'hold', 'need-more-data', 'superseded', 'approve', 'reject', 'rollback',
    'deploy', 'deploy-refused', 'deploy-held', 'deploy-reverted', 'deploy-superseded'));
