-- Whoever holds the online store in memory is told of each change of its state, when it is committed.
create function tell_store_news() returns trigger language plpgsql as $$
begin
    perform pg_notify('online_state', '');
    return null;
end $$;
create trigger store_news after insert or update on online_state for each statement execute function tell_store_news();
