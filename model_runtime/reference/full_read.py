"""One uncached read of a whole ledger through a model's own attention: the truth that everything is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from model_runtime.architecture.rope import short_rope_tokens


@torch.inference_mode()
def full_read(model: torch.nn.Module, ledger: Sequence[int], last: int | None = None) -> torch.Tensor:
    """Logits `(tokens, vocabulary)`, float32, of one uncached read; of the `last` tokens alone if that is given: all
    logits of a long ledger would not fit into memory."""
    ids = torch.tensor([list(ledger)], device=next(model.parameters()).device)
    if last is None:
        return torch.as_tensor(model(ids, use_cache=False).logits[0]).float()
    try:
        logits = model(ids, use_cache=False, logits_to_keep=last).logits
    except TypeError:  # a model that cannot leave any out
        logits = model(ids, use_cache=False).logits
    return torch.as_tensor(logits[0, -last:]).float()


def read_as_it_grew(model: PreTrainedModel, ledger: Sequence[int], last: int) -> torch.Tensor:
    """The same for the `last` tokens of an answer, each as it was when it was the newest. Long RoPE reads a longer
    ledger with other frequencies from its first token on, so an answer that passes that length takes two reads."""
    boundary = short_rope_tokens(model.config.get_text_config())
    first = len(ledger) - last + 1
    if boundary is None or not first <= boundary < len(ledger):
        return full_read(model, ledger, last)
    short = full_read(model, ledger[:boundary], boundary - first + 1)
    return torch.cat([short, full_read(model, ledger, len(ledger) - boundary)])
