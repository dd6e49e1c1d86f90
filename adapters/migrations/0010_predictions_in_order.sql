-- Predictions lie in the order in which they are made: a partition's keys are neighbours, so that it fills a few pages
-- of the index whatever its entities are called, and what each range of blocks holds in time is enough to find a window.

alter table predictions drop constraint predictions_pkey;
alter table predictions add primary key (use_case, model_version, event_time, entity_key);
drop index predictions_by_time;
create index predictions_by_time on predictions using brin (prediction_time)
    with (pages_per_range = 32, autosummarize = on);
