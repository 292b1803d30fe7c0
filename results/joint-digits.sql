select number, replicate, "config/init.args.embed_dim" as embed_dim, "config/init.args.depth" as depth,
  "config/prune" as prune, "config/prune.latency_target" as latency_target, "config/store" as store,
  "config/store.distance_allowed" as distance_allowed, "metric/accuracy" as val_accuracy,
  "metric/test_accuracy" as test_accuracy, "metric/coded_bytes"::int as coded_bytes, "metric/gmacs" as gmacs,
  "metric/entropy_bits" as entropy_bits, seconds, seconds_full
from trials where status = 'complete' order by 1, 2
