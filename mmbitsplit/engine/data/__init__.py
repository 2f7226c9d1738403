"""Calibration images: which, how many, and where they come from."""
