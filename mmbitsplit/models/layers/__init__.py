"""Quantized layers and their geometry."""
