-- What a partition's rows were in the source when it was taken, and which partitions `reconcile` has taken (again).

alter table batches
    add column source_rows bigint,   -- null: taken before this was recorded
    add column source_hash text;

create table retakes (
    use_case text not null,
    partition_start timestamptz not null,
    found_at timestamptz not null default now(),
    reason text not null check (reason in ('late', 'missed')),
    tables jsonb not null default '{}',  -- of a late one: table -> [rows that were taken, rows that were there]
    attempts int not null default 0,
    tried_at timestamptz,
    closed_at timestamptz,               -- when it was found as taken, and judged; null: not yet
    primary key (use_case, partition_start, found_at)
);
create unique index on retakes (use_case, partition_start) where closed_at is null;

create table source_checks (
    use_case text primary key,
    checked_at timestamptz not null,     -- when the latest partitions were last compared with the source
    all_checked_at timestamptz not null
);

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on retakes to observer;
    end if;
end $$;
