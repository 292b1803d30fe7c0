"""NViT on two ranks: importance is reduced, so both hold the same masks."""

from collections.abc import Callable
from typing import Any

SCRIPT = """
from compress.nvit.stage import Nvit
from compress.nvit.groups import UnitLayout
from compress.nvit.importance import TaylorMeter
from compress.nvit.cost import MacsModel
from compress.nvit.pruner import Pruner
from compress.nvit.masked_vit import MaskedVit
from compress.stage import Context
from trainers.config import DataConfig
from trainers.data.splits import load_data
from trainers.models.arch import ModelState
from trainers.models.make import make_arch
from trainers.models.from_timm import from_timm

meter = TaylorMeter(2, 0.9, torch.device("cpu"))  # ranks that saw other contributions
meter.add(torch.tensor([1.0, 2.0]).double() * (rank + 1))
reduced = meter.close().tolist()

data = load_data(DataConfig(dataset="digits", limit=160, val_fraction=0.25), Path(os.environ["SWEEPS_DATA_CACHE"]))
args = {"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
model = ModelState.initialised(make_arch("deit_tiny_distilled_patch16_224", num_classes=10, image_size=32, args=args), 3)
stage = Nvit(latency="macs", measure=False, latency_target=0.5, epochs=4, interval_prune=2, prune_per_iter=96, batch_size=40,
             augment="none", kl_loss_coeff=100.0, groups={"embed": 2, "heads": 1, "qk": 2, "v": 2, "mlp": 4})
on_step, keeps = Pruner.on_step, []
def spy(self, step):
    ended = on_step(self, step)
    keeps.append("".join("01"[k] for k in self.keep.tolist()))
    return ended
Pruner.on_step = spy
def teacher(name, checkpoint):
    raise AssertionError
ctx = Context(data, torch.device("cpu"), 11, folder / "work", teacher)
result = stage.run(model, ctx)
give({"reduced": reduced, "keeps": keeps, "hash": result.hash(), "reason": ctx.reported["stop_reason"]})
"""


def test_both_ranks_hold_the_same_masks(ranks: Callable[..., list[Any]]) -> None:
    first, second = ranks(SCRIPT)
    assert first == second
    assert first["reduced"] == [1.5, 3.0]
    assert first["reason"] == "latency_target"
    assert first["keeps"][0] != first["keeps"][-1]
