"""OpenAI's older completions: a text, or token ids, that the model goes on with, without a template around it."""
