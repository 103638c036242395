"""Runs packed forwards: appends new tokens of many conversations to their slabs and returns their logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from model_runtime.forward.attention import ATTENTION_NAME, PackedBatch, Span, carrying
from model_runtime.forward.packed.kept_logits import kept_logits
from model_runtime.forward.packed.packed_positions import cache_for, counts_positions
from model_runtime.forward.packed.rope_sets import rows_of, separate_rope_sets
from model_runtime.kv.slab import KVSlab


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to append to one slab. `logit_rows` is how many of the last tokens' logits are wanted: 0 within a prompt,
    1 to sample the next token, more to check a draft."""

    slab: KVSlab
    token_ids: Sequence[int]
    logit_rows: int


class PackedForward:
    """Runs a transformers model with `packed_attention`. Use from one thread only."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self._is_counting = counts_positions(model)
        separate_rope_sets(model)
        model.set_attn_implementation(ATTENTION_NAME)

    @torch.inference_mode()
    def run(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """Appends every feed to its slab and returns float32 logits `(sum of logit_rows, vocabulary)`, in the order of
        the feeds and of their rows.

        Each slab may appear once. Slabs grow as needed. Raises `StepAborted` between two layers when `abort_if` returns
        true; then, as after any exception, no slab's length has changed.
        """
        spans: list[Span] = []
        ids: list[int] = []
        positions: list[int] = []
        rows: list[int] = []
        for feed in feeds:
            past, tokens = feed.slab.length_tokens, len(feed.token_ids)
            feed.slab.ensure_room(past + tokens)
            spans.append(Span(feed.slab, len(ids), tokens, past))
            ids.extend(feed.token_ids)
            positions.extend(range(past, past + tokens))
            rows.extend(range(len(ids) - feed.logit_rows, len(ids)))
        places = torch.tensor(positions, device=self.device)
        # A forward without wanted logits still selects one row, because an empty selection would mean all rows.
        keep = torch.tensor(rows or [len(ids) - 1], device=self.device)
        fed = [(feed.slab, len(feed.token_ids)) for feed in feeds]
        with carrying(PackedBatch(spans, abort_if)), rows_of(fed):
            logits: torch.Tensor = self.model(
                input_ids=torch.tensor([ids], device=self.device),
                position_ids=places[None],
                logits_to_keep=keep,
                use_cache=False,
                **cache_for(places, self._is_counting),
            ).logits
        for feed in feeds:
            feed.slab.appended(feed.token_ids)
        return kept_logits(logits[0], keep, len(ids))[: len(rows)].float()
