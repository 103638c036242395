"""Anthropic's Messages API, on conversations that stay warm (https://docs.anthropic.com/en/api/messages)."""
