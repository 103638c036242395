"""The bits in which checkpoints state that their weights are stored, and the layers that run them."""
