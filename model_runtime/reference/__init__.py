"""Holds what Keepwarm computes against what transformers alone computes: token ids, logits, greedy tokens."""
