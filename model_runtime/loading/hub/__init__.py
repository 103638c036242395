"""Models on the Hugging Face hub: checkpoints and GGUF files, downloaded into the hub's usual cache."""
