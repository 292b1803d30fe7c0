"""Weight Fixing Networks: the whole network on few shared values."""

from compress.wfn.clustering import Clustering, cluster
from compress.wfn.fixing import Fixing, FixRules, HoldFixed, fix

__all__ = ["Clustering", "FixRules", "Fixing", "HoldFixed", "cluster", "fix"]
