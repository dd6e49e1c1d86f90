-- What must never be lost or doubled. Keys say what "the same" means; triggers say what may never change.

create table fences (              -- one row a piece of work; a run that is not the latest may not commit
    run_key text primary key,
    epoch bigint not null,
    begun_at timestamptz not null default now()
);

create table batches (             -- one row per content of a table's partition; a changed source adds a row
    use_case text not null,
    table_name text not null,
    partition_start timestamptz not null,
    partition_end timestamptz not null,
    raw_sha256 text not null,
    version int not null,          -- 1, 2, ... in order of arrival; the highest is current
    raw_uri text not null,
    raw_rows bigint not null,
    status text not null check (status in ('landed', 'clean', 'blocked')),
    clean_uri text,
    clean_sha256 text,
    clean_rows bigint,
    quarantined_rows bigint,
    docs_uri text,
    problem text,
    landed_at timestamptz not null default now(),
    validated_at timestamptz,
    primary key (use_case, table_name, partition_start, raw_sha256),
    unique (use_case, table_name, partition_start, version),
    check (status <> 'clean' or (clean_uri is not null and clean_sha256 is not null and clean_rows is not null))
);

create table quarantine (          -- exactly the offending rows, each with its reasons
    use_case text not null,
    table_name text not null,
    partition_start timestamptz not null,
    raw_sha256 text not null,
    row_number bigint not null,    -- 0-based position in the raw object
    row_data jsonb not null,
    reasons text[] not null check (cardinality(reasons) > 0),
    status text not null default 'quarantined' check (status in ('quarantined', 'replayed')),
    corrected jsonb,
    quarantined_at timestamptz not null default now(),
    replayed_at timestamptz,
    replayed_by text,
    primary key (use_case, table_name, partition_start, raw_sha256, row_number)
);

create table snapshots (           -- every version of a feature dataset that was built
    use_case text not null,
    version text not null,         -- DVC's hash of the output folder
    git_revision text not null,
    start timestamptz not null,
    "end" timestamptz not null,
    partitions int not null,
    rows bigint not null,
    index jsonb not null,          -- partition key -> {"inputs": sha256 of what it was built from, "rows": n}
    built_at timestamptz not null default now(),
    build_order bigint generated always as identity,
    primary key (use_case, version)
);

create table predictions (
    use_case text not null,
    entity_key text not null,
    event_time timestamptz not null,
    model_version text not null,
    prediction_time timestamptz not null,
    score double precision not null check (score <> 'NaN'::double precision),
    snapshot_version text not null,
    scored_at timestamptz not null default now(),
    primary key (use_case, entity_key, event_time, model_version)
);
create index predictions_by_time on predictions (use_case, prediction_time);

create table scorings (            -- which feature partition was scored by which model from which inputs
    use_case text not null,
    partition_start timestamptz not null,
    model_version text not null,
    inputs text not null,          -- snapshots.index[partition].inputs
    snapshot_version text not null,
    rows bigint not null,
    scored_at timestamptz not null default now(),
    primary key (use_case, partition_start, model_version)
);

create table outcomes (            -- labels, once known
    use_case text not null,
    entity_key text not null,
    event_time timestamptz not null,
    label double precision not null check (label <> 'NaN'::double precision),
    label_time timestamptz not null,
    primary key (use_case, entity_key, event_time)
);

create table drift (
    use_case text not null,
    as_of timestamptz not null,
    model_version text not null,
    feature text not null,
    measure text not null,         -- psi | missing_share | score_psi
    value double precision,        -- null: could not be measured (unknown, never healthy)
    threshold double precision not null,
    status text not null check (status in ('ok', 'breach', 'unknown')),
    primary key (use_case, as_of, model_version, feature, measure)
);

create table performance (         -- one row per window and per time it was measured; a restatement is a new row
    use_case text not null,
    model_version text not null,
    window_start timestamptz not null,
    window_end timestamptz not null,
    measured_as_of timestamptz not null,
    predicted bigint not null,
    labelled bigint not null,
    coverage double precision not null,
    metrics jsonb not null,
    status text not null check (status in ('ok', 'degraded', 'unknown')),
    primary key (use_case, model_version, window_start, window_end, measured_as_of)
);

create table decisions (           -- what monitoring concluded, once per use case and data time
    decision_id text primary key,
    use_case text not null,
    as_of timestamptz not null,
    model_version text not null,
    decision text not null check (decision in ('ignore', 'alert', 'retrain', 'block')),
    reasons text[] not null,
    evidence jsonb not null,
    decided_at timestamptz not null default now(),
    unique (use_case, as_of)
);

create table retrains (            -- the life of a retrain decision; at most one in flight per use case
    decision_id text primary key references decisions,
    use_case text not null,
    state text not null check (state in ('pending', 'running', 'done', 'failed')),
    run_id text,
    outcome text,                  -- release outcome, once done
    changed_at timestamptz not null default now()
);
create unique index one_retrain_in_flight on retrains (use_case) where state in ('pending', 'running');

create table champions (           -- the truth about who serves; registry aliases are its mirror
    use_case text primary key,
    revision bigint not null,
    version text,
    previous_version text,
    as_of timestamptz not null,
    changed_at timestamptz not null default now()
);

create table ledger (              -- every promotion, refusal, approval, rollback: append-only
    entry bigint generated always as identity primary key,
    use_case text not null,
    action text not null check (action in ('promote', 'hold', 'need-more-data', 'superseded', 'approve', 'reject', 'rollback', 'deploy')),
    model_version text not null,
    champion_version text,         -- who was champion before
    revision bigint,               -- champions.revision after, where it changed
    as_of timestamptz not null,    -- data time from which the change holds
    actor text not null,
    reason text not null,
    evidence jsonb not null,
    verdict_id text,
    recorded_at timestamptz not null default now()
);
create unique index one_entry_per_verdict_and_action on ledger (verdict_id, action) where verdict_id is not null;

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only: % refused', tg_table_name, tg_op using errcode = 'restrict_violation';
end $$;
create trigger ledger_is_append_only before update or delete on ledger for each row execute function refuse_change();
create trigger ledger_is_not_truncated before truncate on ledger for each statement execute function refuse_change();

create table alerts (              -- every alert is a row, sent or not
    alert_id bigint generated always as identity primary key,
    use_case text,
    tier text not null check (tier in ('critical', 'warning', 'info')),
    fingerprint text not null,     -- same fingerprint: same problem, one thread
    title text not null,
    body text not null,
    raised_at timestamptz not null default now(),
    occurrences int not null default 1,
    last_at timestamptz not null default now(),
    channel text,                  -- slack | log; null: not delivered yet
    thread text,
    delivered_at timestamptz,
    resolved_at timestamptz
);
create unique index one_open_alert_per_fingerprint on alerts (fingerprint) where resolved_at is null;

create table costs (               -- what each trained model cost
    use_case text not null,
    model_version text not null,
    step text not null,
    seconds double precision not null,
    device text not null,
    trials int,
    recorded_at timestamptz not null default now(),
    primary key (use_case, model_version, step)
);
