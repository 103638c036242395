"""OpenAI's Responses API, whose names of responses and conversations are places in the tree of messages."""
