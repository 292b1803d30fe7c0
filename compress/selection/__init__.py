"""Initialising a student from a subset of a larger model's weights."""

from compress.selection.elements import ElementRule, select
from compress.selection.layers import LayerRule
from compress.selection.transfer import initialise

__all__ = ["ElementRule", "LayerRule", "initialise", "select"]
