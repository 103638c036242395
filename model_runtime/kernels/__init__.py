"""What runs on an accelerator, each part with a twin that runs on the CPU: spans and the KV arena, the variable-length
attention kernel and its reference, one upload a step, decode steps recorded once and replayed."""
