"""From token ids to logits; `runtime` chooses the CPU or the GPU path."""
