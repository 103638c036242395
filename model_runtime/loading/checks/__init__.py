"""Whether files of a model can be what they say, before memory is taken for them."""
