"""Checks and measures the GPU path with one command that needs only torch, transformers and bitsandbytes."""
