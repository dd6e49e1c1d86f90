-- The interval around an answer, in units of the label; null: its model has none, or it was given before there were any.
-- `not valid`: rows that are there have none to check, so that no table is read.

alter table predictions
    add column lower double precision,
    add column upper double precision;
alter table predictions add constraint predictions_interval check (
    (lower is null) = (upper is null) and lower <= score and score <= upper and upper <> 'NaN'::double precision) not valid;

alter table online_answers
    add column lower double precision,
    add column upper double precision;
alter table online_answers add constraint online_answers_interval check (
    (lower is null) = (upper is null) and lower <= score and score <= upper and upper <> 'NaN'::double precision) not valid;

alter table answers_in_time
    add column lower double precision,
    add column upper double precision;
alter table answers_in_time add constraint answers_in_time_interval check (
    (lower is null) = (upper is null) and lower <= score and score <= upper and upper <> 'NaN'::double precision) not valid;

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select (lower, upper) on online_answers to observer;
    end if;
end $$;
