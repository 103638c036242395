"""Where KVs lie on a GPU, and how their rows come and go."""
