select trial_id, "config/prune" as importance, "config/prune.latency_target" as target, seed,
  "metric/latency_ratio_estimated" as estimated, "metric/latency_ratio_measured" as measured,
  "metric/accuracy" as val_accuracy, "metric/test_accuracy" as test_accuracy, "metric/num_params"::int as num_params,
  "metric/gmacs" as gmacs
from trials where status = 'complete' order by 2, 3, 4
