"""The thread that owns every KV, and what it does in a step."""
