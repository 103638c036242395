"""Whether a model fits into this machine's memory, before its weights are read or downloaded."""
