-- The online store in two parts, so that what is new is small; and how far the source was followed.
alter table online_series alter column payload drop not null;   -- events before the state's `split`; null: none
alter table online_series
    add column recent bytea,                       -- events from `split` on, in the same form; null: none
    add column changed bigint not null default 0;  -- the state's `changes` when either part was last written
alter table online_series alter column recent set storage external;
create index on online_series (use_case, definition, changed);

alter table online_state
    add column split timestamptz,                  -- null: all is in the first part
    add column known_until timestamptz,            -- all that became known before this is in it; null: as_of
    add column changes bigint not null default 0,  -- grows with each step of the stream; a refresh raises `revision`
    add column stopped text[] not null default '{}';  -- tables of the source of which the stream misses something

-- What the stream took of the source that no dataset holds yet. A refresh of the store removes what its dataset holds.
create table followed_rows (
    use_case text not null,
    table_name text not null,
    identity text not null,                        -- JSON list: what tells the rows of the table apart
    available_at timestamptz not null,
    row_data text,                                 -- JSON object of the declared columns, moments in microseconds; null: deleted
    reasons text[],                                -- the expectations that it breaks: it is in no feature; null: none
    changes bigint not null,                       -- of the step that wrote it
    primary key (use_case, table_name, identity)
);

create table stream_state (
    use_case text primary key,
    identities jsonb not null,                     -- table -> the columns in `followed_rows.identity`
    position bigint,                               -- of the last transaction that was taken; null: nothing yet, or polled
    number bigint not null default -1,             -- of the last change of it
    publication_oid bigint,
    known_until timestamptz,                       -- by the source's clock, or its watermark
    changes bigint not null default 0,
    moved_at timestamptz not null default now()
);

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on stream_state to observer;
    end if;
end $$;
