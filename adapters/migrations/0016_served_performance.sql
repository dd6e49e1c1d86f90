-- What was answered in time, judged: and beside it the same events by the same versions on the features made since.

create table served_performance (  -- as `performance`: one row per window and per time it was measured
    use_case text not null,
    model_version text not null,                   -- the champion of data time; `versions` says who answered
    window_start timestamptz not null,             -- not before the champion began to answer
    window_end timestamptz not null,
    measured_as_of timestamptz not null,
    labelled bigint not null,                      -- events of the window whose label is known
    answered bigint not null,                      -- of these, answered in time
    late bigint not null,                          -- of these, answered too late, which is not served
    coverage double precision not null,            -- answered / labelled
    versions jsonb not null,                       -- version -> how many of `answered` it gave
    metrics jsonb not null,                        -- of the answers in time
    restated bigint not null,                      -- of `answered`, how many the same version could score again
    restated_metrics jsonb not null,               -- of these scores
    status text not null check (status in ('ok', 'degraded', 'unknown')),
    is_judged boolean not null,                    -- false: too few, and the batch scores (`performance`) were judged
    labels text,                                   -- a fingerprint of the labels; null: none
    primary key (use_case, model_version, window_start, window_end, measured_as_of)
);

alter table drift add column basis text not null default 'restated' check (basis in ('served', 'restated'));

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on served_performance to observer;
    end if;
end $$;
