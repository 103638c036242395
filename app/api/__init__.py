"""The service that other programs use: OpenAI's shapes over HTTP. Imports no Gradio, so that it can run alone."""
