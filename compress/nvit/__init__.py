"""NViT: global pruning of vision transformers to a latency target."""

from compress.nvit.cost import LatencyModel, MacsModel
from compress.nvit.groups import GroupSizes
from compress.nvit.pruner import Pruner, PruneRules

__all__ = ["GroupSizes", "LatencyModel", "MacsModel", "PruneRules", "Pruner"]
