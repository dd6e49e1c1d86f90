-- A partition that is scored anew from another snapshot replaces its rows, each of whose keys then stands twice in the
-- index until it is vacuumed. To gather such pairs into lists, as PostgreSQL does where a page is full, cost a third of
-- the time of writing them.

alter index predictions_pkey set (deduplicate_items = off);
