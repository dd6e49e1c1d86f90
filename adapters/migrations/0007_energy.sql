-- What training took of energy, where its machine could be read.

alter table costs add column energy_joules double precision;  -- null: not readable there
