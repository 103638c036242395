"""The memory of all KVs on a GPU, and the copies into and out of it."""
