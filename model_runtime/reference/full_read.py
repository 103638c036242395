"""One uncached read of a whole ledger through a model's own attention: the truth that everything is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch


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
