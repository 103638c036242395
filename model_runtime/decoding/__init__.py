"""Chooses the next token, and drafts the ones after it."""
