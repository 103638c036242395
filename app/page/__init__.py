"""Everything a person sees: the Gradio page, its scripts, and the handlers that answer them."""
