"""The CPU kernels in C, and how they are compiled."""
