-- Events whose prediction is to come or is due, and the answers that were given to them without being asked for.
create table known_events (
    use_case text not null,
    entity_key text not null,
    event_time timestamptz not null,
    prediction_time timestamptz not null,
    request jsonb not null,                        -- as a client would send it, once the prediction time has passed
    problem text,                                  -- why the server refused it; null: it did not
    primary key (use_case, entity_key, event_time)
);
create index on known_events (use_case, prediction_time);

create table answers_in_time (
    use_case text not null,
    entity_key text not null,
    event_time timestamptz not null,
    prediction_time timestamptz not null,
    model_version text not null,
    score double precision not null check (score <> 'NaN'::double precision),
    decision boolean,
    degraded boolean not null,
    reasons text[] not null,
    request_id text not null,                      -- with the position: the row of online_answers that has the features
    position int not null,
    known_until timestamptz,                       -- what it knew: all that became known before; null: no history
    answered_at timestamptz not null,              -- by the source's clock, or its watermark
    made_at timestamptz not null default now(),    -- by the warehouse's clock
    in_time boolean not null,                      -- before the event, and within the declared time after prediction_time
    primary key (use_case, entity_key, event_time)
);
create index on answers_in_time (use_case, prediction_time);

alter table stream_state add column answers_since timestamptz;  -- events are answered from this prediction time on

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on known_events, answers_in_time to observer;
    end if;
end $$;
