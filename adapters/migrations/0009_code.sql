-- Which code wrote what a run concluded: each session says the commit that it runs, and these tables keep it.

create function record_code() returns trigger language plpgsql as $$
begin
    new.code_sha := coalesce(nullif(current_setting('windsock.code_sha', true), ''), new.code_sha);
    return new;
end $$;

do $$
declare
    concluded text;
begin
    foreach concluded in array array[
        'batches', 'snapshots', 'scorings', 'decisions', 'retrains', 'ledger', 'deployments', 'experiments'
    ] loop
        -- of the last write; null: before this was recorded, or by hand
        execute format('alter table %I add column code_sha text', concluded);
        execute format(
            'create trigger code_is_recorded before insert or update on %I for each row execute function record_code()',
            concluded
        );
    end loop;
end $$;
