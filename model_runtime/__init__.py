"""Loads a model, stores KVs and runs packed forwards. Knows nothing of users or conversations."""
