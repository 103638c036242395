"""Everything a person sees: Gradio's part, the scripts beside it, and the handlers that answer them."""
