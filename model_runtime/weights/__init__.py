"""Quantization: how weights are stored and multiplied."""
