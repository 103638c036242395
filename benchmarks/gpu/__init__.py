"""The GPU path, checked and measured with one command that needs only torch, transformers and bitsandbytes."""
