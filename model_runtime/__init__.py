"""Computes: loads a model, keeps KV slabs, runs packed forwards. Knows nothing of people or conversations."""
