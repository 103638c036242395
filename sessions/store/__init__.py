"""The SQLite database and the data directory."""
