-- What was answered online, and how much of it never reached this place.

-- One row an event of a request; a request that is sent again adds nothing. Ids come from clients, who may use one for
-- many requests: it is together with the event that they name an answer.
create table online_answers (
    use_case text not null,
    request_id text not null,
    position int not null,         -- of the event in its request, from 0
    model_version text not null,
    slot text not null,            -- stable, candidate, shadow; direct: it did not come through the gateway
    client text not null,
    entity_key text not null,
    event_time timestamptz not null,
    prediction_time timestamptz not null,
    score double precision not null check (score <> 'NaN'::double precision),
    decision boolean,
    degraded boolean not null,
    reasons text[] not null,
    feature_as_of timestamptz,     -- what the store knew up to, and which dataset it was made with; null: it was silent
    feature_snapshot text,
    feature_age_seconds double precision,
    server_ms double precision not null,
    request jsonb not null,
    features jsonb not null,
    answered_at timestamptz not null,
    entity_id text,                -- the client's X-Entity-Id, by which the gateway chose the slot; null: by the body
    primary key (use_case, request_id, position, model_version, entity_key, event_time)
);
create index online_answers_by_time on online_answers (use_case, answered_at);
create index online_answers_by_event on online_answers (use_case, entity_key, event_time);

create table online_losses (       -- of one worker process: answered = shipped + dropped + lost + repeated, once ended
    session text primary key,
    use_case text not null,
    started_at timestamptz not null,
    ended_at timestamptz,          -- null while it lives
    segments bigint not null,      -- the number of its last file that was shipped: none is shipped twice
    answered bigint not null,
    shipped bigint not null,
    dropped bigint not null,       -- answered while the spool or the disk was full
    lost bigint not null,          -- in nobody's hands after a crash; 0 while it lives
    repeated bigint not null default 0     -- an event that was answered under the same request id before
);

do $$
begin
    if exists (select from pg_roles where rolname = 'online') then
        execute format('grant connect on database %I to online', current_database());
        grant usage on schema public to online;
        grant select, insert on online_answers to online;
        grant select, insert, update on online_losses to online;
    end if;
end $$;
