-- A held challenger is judged again, on the days that have come since, before anything is trained anew.

alter table retrains add column challenger text;  -- the version to be judged again; null: a model is trained
