-- The online feature store: for each key the packed series of its history, of one revision at a time.

create table online_state (
    use_case text not null,
    definition text not null,      -- digest of the feature definition the series belong to
    since timestamptz not null,    -- prediction times from here on have all the history they look back on
    as_of timestamptz not null,    -- what became known from here on is not in it
    snapshot_version text not null,
    revision bigint not null,      -- changes with any series: what a reader has decoded holds for one revision
    refreshed_at timestamptz not null default now(),
    primary key (use_case, definition)
);

create table online_series (
    use_case text not null,
    definition text not null,
    key text not null,             -- stream(columns)[values]
    payload bytea not null,        -- see features/packed.py
    primary key (use_case, definition, key)
);
alter table online_series alter column payload set storage external;  -- deflated already

-- Where the roles are made with the database (the embedded stack, compose), the server's may read these and no more.
do $$
begin
    if exists (select from pg_roles where rolname = 'online') then
        execute format('grant connect on database %I to online', current_database());
        grant usage on schema public to online;
        grant select on online_state, online_series to online;
    end if;
end $$;
