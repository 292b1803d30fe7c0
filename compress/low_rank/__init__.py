"""Layers as products of two smaller ones: which, of which rank, and with which values."""
