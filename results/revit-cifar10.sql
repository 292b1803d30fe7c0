select t.trial_id, case when list_distinct(from_json(t."config/source.args.heads", '["INTEGER"]')) = [2] then 'uniform' else 'revit' end as shape,
  t.seed, e.epoch, e.accuracy as val_accuracy, t."metric/test_accuracy" as test_accuracy, t."metric/num_params"::int as num_params,
  t."metric/gmacs" as gmacs
from trials t join epochs e using (trial_id) where t.status = 'complete' order by 2, 3, 4
