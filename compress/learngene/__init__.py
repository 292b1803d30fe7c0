"""Learngenes: one auxiliary network that expands into models of any size."""

from compress.learngene.blocks import expand_stages, share_stages
from compress.learngene.library import Learngene

__all__ = ["Learngene", "expand_stages", "share_stages"]
