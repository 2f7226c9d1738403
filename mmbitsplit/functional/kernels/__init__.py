"""Compiled loops and exact sums, and what they stand for in plain torch."""
