"""Block-quantised matrices of every format on a GPU, at their own bits."""
