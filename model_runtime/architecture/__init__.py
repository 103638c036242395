"""The structure of a checkpoint's layers, and checks that they fit together."""
