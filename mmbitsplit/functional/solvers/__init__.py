"""Chooses weight codes by an objective."""
