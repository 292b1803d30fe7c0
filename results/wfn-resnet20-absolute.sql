select 'absolute' as method, "config/quantize.distance_allowed" as distance_allowed, seed,
  "metric/accuracy" as val_accuracy, "metric/test_accuracy" as test_accuracy, "metric/entropy_bits" as entropy_bits,
  "metric/unique_values"::int as unique_values, "metric/coded_bytes"::int as coded_bytes,
  "metric/model_bytes"::int as model_bytes, device, "version/torch" as torch
from trials where status = 'complete' order by distance_allowed, seed
