"""Our own CUDA kernels for steps of few rows."""
