"""What a person sees before the first message."""

from __future__ import annotations

from dataclasses import dataclass

from model_runtime.interface.protocol import ModelInfo

SMALL_MODEL_BYTES = 1024**3
EXAMPLES = (
    "Explain in three sentences why the sky is blue.",
    "Write a Python function that reverses a string, with an example.",
    "Give me five ideas for a rainy afternoon at home.",
)
PANEL_SENTENCE = (
    "Memory, at the top right, shows what each conversation keeps, so that its next turn reads only what is new."
)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The empty state: what the model is good for, what one might ask, what the panel on the right shows."""

    good_for: str
    examples: tuple[str, ...]
    panel: str


def welcome(info: ModelInfo) -> Welcome:
    """The empty state of a page with this model."""
    return Welcome(_good_for(info), EXAMPLES, PANEL_SENTENCE)


def _good_for(info: ModelInfo) -> str:
    if not info.keeps_kv:
        return f"It runs at {info.device}: what you write is sent there."
    if info.weights_bytes < SMALL_MODEL_BYTES:
        return (
            "A small demonstration model: quick, good at short texts and simple questions, "
            "and often wrong about facts. It runs only on this machine."
        )
    return "It runs only on this machine: nothing you write leaves it."
