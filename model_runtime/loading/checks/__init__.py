"""Checks that a model's files are consistent, before memory is allocated for them."""
