"""A KV's whole life: on the device, in host memory, on disk. Knows no run."""
