select "config/init" as start, seed, "config/finetune.epochs" as epochs, "config/finetune.lr" as lr,
  "metric/accuracy" as accuracy, "metric/test_accuracy" as test_accuracy
from trials where status = 'complete' order by all
