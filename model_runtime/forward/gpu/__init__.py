"""Decode steps and short turns on CUDA, replayed as graphs."""
