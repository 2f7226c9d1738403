"""Finds and reads configs, and answers their errors."""
