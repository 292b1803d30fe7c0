select "config/prune" as importance, "config/prune.latency_target" as target, seed,
  "metric/latency_ratio_estimated" as estimated, "metric/accuracy" as val_accuracy,
  "metric/test_accuracy" as test_accuracy, "metric/num_params"::int as num_params, "metric/gmacs" as gmacs
from trials where status = 'complete' order by 1, 2, 3
