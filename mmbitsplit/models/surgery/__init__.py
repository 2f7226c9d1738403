"""Prepares a model, writes solutions into it, and takes both back."""
