"""Quantised layers of checkpoints, read without the packages that made them and run in our own form."""
