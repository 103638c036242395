"""Translates a client's request into one for the session manager, and names what is not honoured."""
