-- What a partition's rows were in the source when it was last found as taken, and what came to one after that.

alter table batches
    add column source_rows bigint,   -- null: taken before this was recorded
    add column source_hash text;

create table late_rows (
    use_case text not null,
    table_name text not null,
    partition_start timestamptz not null,
    found_at timestamptz not null default now(),
    rows_taken bigint not null,
    rows_found bigint not null,      -- may be fewer, or as many: rows are corrected and deleted late, too
    retaken_at timestamptz,          -- null: `reconcile` has yet to have the partition taken again
    primary key (use_case, table_name, partition_start, found_at)
);
create unique index on late_rows (use_case, table_name, partition_start) where retaken_at is null;

create table source_checks (
    use_case text primary key,
    checked_at timestamptz not null  -- when all partitions were last compared, not the latest ones alone
);

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on late_rows to observer;
    end if;
end $$;
