-- What was expected of a partition before its labels came, and, once they came, what it turned out to be.

create table expected_performance (  -- as `performance`: one row per window and per time it was stated
    use_case text not null,
    model_version text not null,
    window_start timestamptz not null,   -- a partition
    window_end timestamptz not null,
    measured_as_of timestamptz not null, -- the first row, at the window's end, is the estimate; later ones restate it
    predicted bigint not null,
    matured bigint not null,             -- rows with a label, of before the window, that the estimate is made from
    expected jsonb not null,             -- metric -> value, spread, low, high, trust (unproven | trusted | withdrawn)
    labelled bigint not null,            -- 0: labels are still to come
    realised jsonb not null,             -- metric -> value; empty until enough labels have come
    labels text,                         -- a fingerprint of the labels; null: none
    primary key (use_case, model_version, window_start, window_end, measured_as_of)
);

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on expected_performance to observer;
    end if;
end $$;
