"""The rows of one conversation, in a slab or in a file."""
