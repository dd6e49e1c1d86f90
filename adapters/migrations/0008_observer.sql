-- What the exporter and the dashboards may read: numbers about the loop, and not the rows it works on.

do $$
begin
    if exists (select from pg_roles where rolname = 'observer') then
        execute format('grant connect on database %I to observer', current_database());
        grant usage on schema public to observer;
        grant select on batches, snapshots, scorings, outcomes, drift, performance, decisions, retrains, champions, ledger,
            alerts, costs, online_state, online_losses, deployments, online_watch, online_quality, experiments,
            experiment_looks to observer;
        grant select (use_case, table_name, partition_start, raw_sha256, reasons, status, quarantined_at)
            on quarantine to observer;
        -- Not what was asked, nor by whom.
        grant select (use_case, request_id, position, model_version, slot, entity_key, event_time, prediction_time, score,
            decision, degraded, reasons, feature_age_seconds, server_ms, features, answered_at) on online_answers to observer;
    end if;
end $$;
