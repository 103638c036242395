"""Maintenance of a data directory, some of it while a server runs: backup, clearing saved memory, the doctor."""
