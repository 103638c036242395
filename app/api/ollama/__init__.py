"""Ollama's API below /api, on conversations that stay warm (https://github.com/ollama/ollama/blob/main/docs/api.md)."""
