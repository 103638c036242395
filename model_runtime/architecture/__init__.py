"""What a checkpoint's layers are, and whether they fit together."""
