"""Moving a KV: save, restore, park, prefetch."""
