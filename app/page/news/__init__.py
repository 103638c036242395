"""Sends a page only what it does not have yet."""
