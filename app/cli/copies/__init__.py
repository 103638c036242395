"""Commands that copy a data directory, or one owner's part of it."""
