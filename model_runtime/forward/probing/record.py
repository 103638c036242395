"""Records what each layer's attention asks for: the shape of its keys and values, its options, what its mask hides."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from model_runtime.forward.attention import ATTENTION_NAME, HIDDEN_KEYS, carrying, packed_attention
from model_runtime.forward.attention_options import AttentionOptions
from model_runtime.forward.classic.replacements import replace_attention
from model_runtime.forward.probing.recorded_masks import MaskFunction, RecordedMasks, UnknownMask
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import LayerShape

_RECORD_NAME = "keepwarm_record"
_MASKS: ContextVar[RecordedMasks] = ContextVar("keepwarm_masks")


@dataclass(slots=True)
class RecordingBatch:
    """An `AttentionBatch` that records what each layer's attention asks for and returns zeros."""

    abort_if: Callable[[], bool] = lambda: False
    layers_seen: list[int] = field(default_factory=list)
    shapes: list[LayerShape] = field(default_factory=list)
    options: list[AttentionOptions] = field(default_factory=list)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """See `AttentionBatch`."""
        self.shapes.append(LayerShape(kv_heads=key.shape[1], key_dim=key.shape[3], value_dim=value.shape[3]))
        self.options.append(options)
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))


@torch.inference_mode()
def record_layers(model: PreTrainedModel) -> RecordingBatch:
    """What the layers' attention asks for, from a forward of two tokens, after `replace_attention`. The model is left
    with the packed attention set, and its layers with what their masks hide. Raises `ModelLoadError` if it cannot be
    run so."""
    name, batch = type(model).__name__, RecordingBatch()
    device = next(model.parameters()).device
    replace_attention(model)
    token = _MASKS.set(RecordedMasks())
    try:
        model.set_attn_implementation(_RECORD_NAME)
        with carrying(batch):
            model(input_ids=torch.tensor([[1, 2]], device=device), use_cache=False)
    except UnknownMask as error:
        raise ModelLoadError(
            f"{name} cannot be packed with other conversations: its layers hide keys in a way of their own, which the "
            "packed kernel does not compute."
        ) from error
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
        how = " through Keepwarm's attention" if _runs_by_itself(model) else ""
        raise ModelLoadError(f"{name} cannot be run{how}: {str(error).rstrip('.')}.") from error
    finally:
        _MASKS.reset(token)
        model.set_attn_implementation(ATTENTION_NAME)
    check_calls(model, batch)
    return batch


def _runs_by_itself(model: PreTrainedModel) -> bool:
    """Whether the same two tokens can be read through attention of transformers. Leaves that set."""
    device = next(model.parameters()).device
    try:
        model.set_attn_implementation("eager")
        model(input_ids=torch.tensor([[1, 2]], device=device), use_cache=False)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError):
        return False
    return True


def check_calls(model: PreTrainedModel, batch: RecordingBatch) -> None:
    """Raises `ModelLoadError` unless each layer has called the attention once, in order."""
    expected = int(model.config.get_text_config().num_hidden_layers)
    if batch.layers_seen != list(range(expected)):
        calls = len(batch.layers_seen)
        why = (
            "its layers call the attention more often, on parts of their heads, which Keepwarm cannot pack yet"
            if calls > expected
            else f"{'its other layers compute' if calls else 'it computes attention'} in code of "
            f"{'their' if calls else 'its'} own, which Keepwarm cannot replace"
        )
        raise ModelLoadError(
            f"{type(model).__name__} has {expected} layers but called the attention function "
            f"{f'{calls} times' if calls else 'never'}: {why}. Llama-, Qwen-, Mistral-, Gemma- and GPTBigCode-like "
            "models work."
        )


def _recorded_mask(*, mask_function: MaskFunction, local_size: int | None = None, **named: Any) -> torch.Tensor:
    """Called by transformers where it builds a mask: a small one is enough for a forward of two tokens."""
    named |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask = sdpa_mask(mask_function=mask_function, local_size=local_size, **named)
    assert mask is not None
    return _MASKS.get().add(mask, mask_function, local_size)


def _record_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **named: Any,
) -> tuple[torch.Tensor, None]:
    """Remembers at the layer what its mask hides. See `packed_attention`."""
    setattr(module, HIDDEN_KEYS, _MASKS.get().hidden(attention_mask))
    return packed_attention(module, query, key, value, None, **named)


AttentionInterface.register(_RECORD_NAME, _record_attention)
AttentionMaskInterface.register(_RECORD_NAME, _recorded_mask)
