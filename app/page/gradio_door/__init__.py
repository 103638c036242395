"""What reaches Gradio, and in what shape."""
