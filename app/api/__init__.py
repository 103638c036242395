"""The API for other programs, in OpenAI's shapes over HTTP. Imports no Gradio, so that it can run without the page."""
