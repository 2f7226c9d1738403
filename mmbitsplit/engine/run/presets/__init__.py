"""What is particular to a family of models."""

from mmbitsplit.engine.run.presets.openmmlab import replay_points

__all__ = ['replay_points']
