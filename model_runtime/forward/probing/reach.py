"""Whether texts reach the packed attention in every layer: decided before there are weights."""

from __future__ import annotations

import inspect

import torch
from transformers import PreTrainedModel

from model_runtime.forward.attention import ATTENTION_NAME, carrying
from model_runtime.forward.classic.replacements import replace_attention
from model_runtime.forward.probing.record import RecordingBatch, check_calls
from model_runtime.interface.errors import ModelLoadError

_ABOUT_SIZES = (
    "cannot be multiplied",
    "must have same reduction dim",
    "must match the size of",
    "is invalid for input of size",
    "to sum exactly to",
)


@torch.inference_mode()
def check_reach(model: PreTrainedModel, name: str) -> None:
    """Raises `ModelLoadError` if a model on the meta device is known not to continue a text alone, or not to call the
    attention once in each layer. What only weights can show is left to `record_layers`. The model is left with the
    packed attention set, and in eval mode: in training some ask for more than a text."""
    model.eval()
    needed = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name != "input_ids"
    ]
    if needed:
        raise ModelLoadError(f"{name} cannot be run: it reads no text without {' and '.join(needed)}.")
    batch = RecordingBatch()
    try:
        replace_attention(model)
        model.set_attn_implementation(ATTENTION_NAME)
        with carrying(batch):
            model(input_ids=torch.tensor([[1, 2]], device="meta"), use_cache=False)
    except ValueError as error:  # of its own code: torch raises a RuntimeError
        raise ModelLoadError(f"{name} cannot be run with texts alone: {str(error).rstrip('.')}.") from error
    except (RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
        if any(words in str(error) for words in _ABOUT_SIZES):
            raise ModelLoadError(f"{name} cannot be run: its config's sizes contradict each other: {error}.") from error
        return  # numbers are needed
    check_calls(model, batch)
