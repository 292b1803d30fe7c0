select t."config/init" as start, t."config/init.args.embed_dim" as embed_dim, t."config/init.args.depth" as depth,
  t."config/finetune.lr" as lr, t."metric/accuracy" as accuracy, t."metric/test_accuracy" as test_accuracy,
  t."metric/gmacs" as gmacs, max(e.accuracy) filter (e.epoch = 0) as epoch_1,
  max(e.accuracy) filter (e.epoch = 1) as epoch_2, max(e.accuracy) filter (e.epoch = 2) as epoch_3,
  max(e.accuracy) filter (e.epoch = 3) as epoch_4
from trials t join epochs e using (trial_id) where e.stage = 'finetune' and t.status = 'complete'
group by all order by 1, 2, 3, 4
