"""Our own CUDA kernels for steps with few rows."""
