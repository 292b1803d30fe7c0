with first as (select *, row_number() over (partition by key order by trial_id) = 1 as is_new from stages),
  work as (select trial_id, sum(seconds) as spent, sum(seconds_full) as alone,
    sum(seconds_full) filter (where is_new) as trained from first group by trial_id)
select number, replicate, "config/init.args.embed_dim" as embed_dim, "config/init.args.depth" as depth,
  "config/prune" as prune, coalesce("config/prune.latency_target", "config/prune.target.macs") as share,
  "config/store" as store, "config/store.distance_allowed" as distance_allowed,
  "metric/runtime_accuracy" as val_runtime_accuracy, "metric/accuracy" as val_accuracy,
  "metric/test_accuracy" as test_accuracy, "metric/latency_ms" as latency_ms,
  "metric/latency_ratio" as latency_ratio, "metric/file_bytes"::int as file_bytes,
  "metric/coded_bytes"::int as coded_bytes, "metric/gmacs" as gmacs,
  seconds - spent + coalesce(trained, 0) as seconds, seconds - spent + alone as seconds_full
from trials join work using (trial_id) where status = 'complete' order by 1, 2
