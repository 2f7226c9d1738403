"""Quantizers as pure functions: round trips, their ranges and their gradients."""
