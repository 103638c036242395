"""Quantization: how weights lie in memory and how they are multiplied."""
