"""Choosing the next token, and guessing the ones after it."""
