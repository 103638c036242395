"""Quantised weights that are kept on disk for the next start."""
