"""Speaks Gradio, HTTP and HTML. Holds no torch and no SQL."""
