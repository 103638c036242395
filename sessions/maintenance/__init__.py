"""What is done with a data directory while no server runs, or beside one: backup, clearing, the doctor."""
