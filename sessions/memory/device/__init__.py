"""Who holds a KV on the device, and the queue for room there."""
