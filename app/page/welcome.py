"""What a person sees before the first message."""

from __future__ import annotations

from typing import Any

from model_runtime.interface.protocol import ModelInfo

SMALL_MODEL_BYTES = 1024**3
EXAMPLES = (
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that reverses a string, with an example.",
    "Give me five ideas for a rainy afternoon at home.",
)
PANEL_SENTENCE = (
    "The panel on the right shows what each conversation keeps in memory, so that its next turn reads only what is new."
)


def welcome(info: ModelInfo) -> dict[str, Any]:
    """The empty state as JSON for the page's script."""
    return {"model": info.name, "good_for": _good_for(info), "examples": list(EXAMPLES), "panel": PANEL_SENTENCE}


def _good_for(info: ModelInfo) -> str:
    if not info.keeps_kv:
        return f"It runs at {info.device}: what you write is sent there."
    if info.weights_bytes < SMALL_MODEL_BYTES:
        return (
            "A small demonstration model: quick, good at short texts and simple questions, "
            "and often wrong about facts. It runs only on this machine."
        )
    return "It runs only on this machine: nothing you write leaves it."
