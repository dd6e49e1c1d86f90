-- The stream brings the online store to a later dataset in place: its series are cut at the new split one after another.
alter table online_series add column split timestamptz;  -- that its two parts were cut at; null: it is in one
update online_series s set split = st.split from online_state st
where (st.use_case, st.definition) = (s.use_case, s.definition) and st.split is not null;
