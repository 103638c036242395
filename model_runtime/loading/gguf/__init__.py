"""Reads GGUF files: their metadata as a transformers config, their tensors as weights, their vocabulary as a tokenizer.

Everything a file states is used, known to be irrelevant, or a reason to refuse it by name.
"""
