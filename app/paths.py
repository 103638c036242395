"""The URL paths that the server answers, for the layers that check, limit and serve them."""

from __future__ import annotations

ASSETS_PATH = "/keepwarm"
ASK_PATH = "/ask"  # where the page asks all its questions
LOGIN_PATH, LOGOUT_PATH = "/login", "/logout"
HEALTH_PATH, METRICS_PATH = "/health", "/metrics"
API_PATH = "/v1"  # admits its callers by API key, never by cookie: see app/access/callers.py
OLLAMA_PATH = "/api"  # admits the same callers
MESSAGES_PATH = f"{API_PATH}/messages"  # Anthropic's protocol
TOKEN_PATHS = ("/tokenize", "/detokenize")  # where vLLM and llama.cpp have what is below /v1 here


def beside(path: str, target: str) -> str:
    """The address of `target`, one of ours, as a reference relative to the request path `path`. A proxy that serves us
    below a path of its own does not have to rewrite it."""
    return "../" * (path.count("/") - 1) + (target.lstrip("/") or "./")


def is_api(path: str) -> bool:
    """Whether the API answers at this path, and errors there must have its JSON shape."""
    return path in TOKEN_PATHS or any(path == root or path.startswith(f"{root}/") for root in (API_PATH, OLLAMA_PATH))
