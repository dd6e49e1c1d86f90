-- Answers on their way to a webhook: written with the answer, and marked when the receiver has taken it.
create table answer_deliveries (
    use_case text not null,
    entity_key text not null,
    event_time timestamptz not null,
    number bigint generated always as identity,    -- they are sent in the order of this
    message_id text,                               -- of the request it is in, and sent again in; null: in none yet
    attempts int not null default 0,               -- that failed since somebody last had it tried
    next_at timestamptz not null default now(),    -- not before this, by the warehouse's clock
    status text not null default 'waiting' check (status in ('waiting', 'undeliverable', 'delivered')),
    problem text,                                  -- of the last attempt; null: it did not fail
    delivered_at timestamptz,
    primary key (use_case, entity_key, event_time),
    foreign key (use_case, entity_key, event_time) references answers_in_time on delete cascade
);
-- As small as what is on its way, whatever was delivered.
create index on answer_deliveries (use_case, number) where status = 'waiting';
create index on answer_deliveries (use_case) where status = 'undeliverable';
create index on answer_deliveries (message_id) where status <> 'delivered' and message_id is not null;

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        grant select on answer_deliveries to observer;
    end if;
end $$;
