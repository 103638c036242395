"""Runs packed forwards: appends new tokens of many conversations to their slabs and returns next-token logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from model_runtime.forward.attention import ATTENTION_NAME, PackedBatch, Span
from model_runtime.kv.slab import KVSlab


@dataclass(frozen=True, slots=True)
class Feed:
    """Tokens to append to one slab. `logit_rows` asks for the logits behind so many of the last of them: 0 in the
    middle of a prompt, 1 to sample behind it, more to check a draft."""

    slab: KVSlab
    token_ids: Sequence[int]
    logit_rows: int


class PackedForward:
    """A transformers model whose attention goes through `packed_attention`. Use from one thread only."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        model.set_attn_implementation(ATTENTION_NAME)

    @torch.inference_mode()
    def run(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        """Appends every feed to its slab and returns float32 logits `(sum of logit_rows, vocabulary)`: the feeds in
        order, and each one's rows in order.

        Every slab may appear once. Slabs grow as needed. Raises `StepAborted` between layers once `abort_if` says so;
        then, as after any exception, no slab's length has changed.
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
        logits: torch.Tensor = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            # A forward that wants nothing still has to name a row: an empty choice would mean "all of them".
            logits_to_keep=torch.tensor(rows or [len(ids) - 1], device=self.device),
            use_cache=False,
            packed=PackedBatch(spans, abort_if),
        ).logits
        for feed in feeds:
            feed.slab.appended(feed.token_ids)
        return logits[0, : len(rows)].float()
