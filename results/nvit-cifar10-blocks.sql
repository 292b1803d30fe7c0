select t."config/prune" as importance, t."config/prune.latency_target" as target, t.seed,
  row_number() over (partition by l.trial_id order by l.index) as block, l.embed, l.heads, l.qk, l.v, l.mlp
from layers l join trials t using (trial_id) where t.status = 'complete' and l.kind = 'block' order by 1, 2, 3, 4
