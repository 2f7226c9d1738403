"""Runs a model on calibration images: float pass, lockstep, replay, team."""
