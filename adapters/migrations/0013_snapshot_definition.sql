-- By which feature definition a dataset was made: code in features/ may have changed since.

alter table snapshots add column features_digest text;  -- null: made before this was recorded, by the definition of then
