"""Is the memory true? Comparing it with a fresh read."""
