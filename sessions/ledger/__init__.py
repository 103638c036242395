"""Pure functions that turn messages into exact token ids, and histories into hashes."""
