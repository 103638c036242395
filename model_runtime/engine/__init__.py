"""The engine: the thread that owns every KV, and its steps."""
