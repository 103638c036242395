"""Pure functions: messages to exact token ids, and the hashes of histories."""
