-- An experiment ends where the versions did not answer their shares of what the gateway gave out.

alter table experiments drop constraint experiments_outcome_check;
alter table experiments add constraint experiments_outcome_check check (outcome in
    ('treatment-better', 'control-better', 'undecided', 'stopped-by-guardrail', 'sample-ratio-mismatch', 'stopped',
    'interrupted'));

alter table experiment_looks
    add column control_keys bigint not null default 0,     -- entities, or bodies without one, by their first answer
    add column treatment_keys bigint not null default 0;
alter table experiment_looks drop constraint experiment_looks_decision_check;
alter table experiment_looks add constraint experiment_looks_decision_check check (decision in
    ('continue', 'treatment-better', 'control-better', 'undecided', 'stopped-by-guardrail', 'sample-ratio-mismatch'));
