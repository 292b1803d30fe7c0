select t."config/init" as start, t."config/init.element_rule" as rule, t.seed, e.epoch + 1 as epoch,
  e.accuracy as accuracy, t."metric/test_accuracy" as test_accuracy
from epochs e join trials t using (trial_id) where t.status = 'complete' order by 1, 2, 3, 4
