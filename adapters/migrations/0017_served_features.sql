-- The features of each answer in time beside batch's; and what is kept to prove why they differ.

alter table online_answers add column feature_changes bigint;  -- of the stream, in the store; null: silent, or not logged yet

-- Each row of the source as the stream was told of it, version by version; `followed_rows` has the last one.
create table followed_versions (
    use_case text not null,
    version bigint generated always as identity,   -- in the order in which they were told
    table_name text not null,
    identity text not null,
    changes bigint not null,                       -- of the step that told it: answers of a store before it did not know it
    available_at timestamptz,                      -- null: it was deleted, and when it became known is not told
    row_data text,                                 -- as in followed_rows; null: deleted
    reasons text[],
    is_followed boolean not null,                  -- false: its partition was taken before, it is in no series
    position bigint,                               -- of the log after the step; null: polled, or told before this was kept
    known_before timestamptz,                      -- until when all was known before the step, and after it
    known_until timestamptz,
    kept_at timestamptz not null default now(),
    primary key (use_case, version)
);
create index on followed_versions (use_case, available_at);

insert into followed_versions (use_case, table_name, identity, changes, available_at, row_data, reasons, is_followed)
select use_case, table_name, identity, changes, available_at, row_data, reasons, true from followed_rows
order by use_case, changes, table_name, identity;

create table served_partitions (                   -- of the answers in time of a partition, as last compared
    use_case text not null,
    partition_start timestamptz not null,
    snapshot_version text not null,
    seen text not null,                            -- what it was compared from: inputs of batch, and answers
    answers int not null,                          -- in time
    unlogged int not null,                         -- of these, those whose features did not reach online_answers
    compared bigint not null,                      -- features of the others
    equal bigint not null,                         -- of these, to the bit
    causes jsonb not null,                         -- cause -> features that differ by it; together all that differ
    compared_at timestamptz not null default now(),
    primary key (use_case, partition_start)
);

create table served_differences (
    use_case text not null,
    partition_start timestamptz not null,
    entity_key text not null,
    event_time timestamptz not null,
    feature text not null,                         -- `event`: batch has no such event
    model_version text not null,
    served jsonb,                                  -- a number or a text; null: nothing
    batch jsonb,
    cause text not null check (cause in ('record_late', 'record_corrected', 'quarantined_since', 'stream_behind',
        'store_silent', 'clock_apart', 'defect')),
    proof jsonb not null,                          -- positions and rows; of a defect what is missing
    primary key (use_case, entity_key, event_time, feature)
);
create index on served_differences (use_case, partition_start);

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on served_partitions to observer;
        grant select (use_case, partition_start, entity_key, event_time, feature, model_version, served, batch, cause)
            on served_differences to observer;
    end if;
end $$;
