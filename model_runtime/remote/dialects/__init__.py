"""How each kind of server is asked for tokens, and how its answer is read."""
