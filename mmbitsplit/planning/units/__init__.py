"""Divides a model into reconstruction units."""

from mmbitsplit.planning.units.partition import MAX_BYTES, MAX_LAYERS, find_units

__all__ = ['MAX_BYTES', 'MAX_LAYERS', 'find_units']
