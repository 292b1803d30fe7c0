select "config/quantize" as part, "config/quantize.distance_allowed" as distance_allowed, seed,
  "metric/accuracy" as val_accuracy, "metric/test_accuracy" as test_accuracy, "metric/entropy_bits" as entropy_bits,
  "metric/unique_values"::int as unique_values, "metric/coded_bytes"::int as coded_bytes
from trials where status = 'complete' order by 1, 2, 3
