"""Chooses the next token from logits."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from model_runtime.types import SamplingParams, TokenLogprob, TokenLogprobs


class Sampler:
    """One generation's sampler: its own random stream, its own memory of seen tokens. Engine thread only.

    The order is that of the literature's reference implementations: repetition penalty (Keskar et al. 2019,
    arXiv:1909.05858, over everything in the ledger), presence and frequency penalty (over this answer), temperature,
    top-k, top-p (Holtzman et al. 2019, arXiv:1904.09751), min-p (Nguyen et al. 2024, arXiv:2407.01082).
    """

    def __init__(self, params: SamplingParams, ledger: Sequence[int], device: torch.device) -> None:
        self._params = params
        self._generator = torch.Generator(device)
        self._generator.manual_seed(secrets.randbits(63) if params.seed is None else params.seed)
        self._seen = None
        if params.repetition_penalty != 1.0:
            self._seen = torch.tensor(sorted(set(ledger)), device=device)
        self._counts: Counter[int] | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._counts = Counter()

    @torch.inference_mode()  # the engine's logits are inference tensors, which nothing else may write to
    def choose(self, logits: torch.Tensor) -> int:
        """The next token from float32 `logits (vocabulary,)`, which may be changed."""
        params = self._params
        if self._seen is not None:
            logits = self._penalise(logits, self._seen)
        if self._counts:
            logits = self._take_penalties(logits, self._counts)
        token = int(logits.argmax()) if params.temperature == 0 else self._draw(logits / params.temperature)
        if self._seen is not None:
            self._seen = torch.unique(torch.cat([self._seen, self._seen.new_tensor([token])]))
        if self._counts is not None:
            self._counts[token] += 1
        return token

    def _take_penalties(self, logits: torch.Tensor, counts: Counter[int]) -> torch.Tensor:
        ids = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), device=logits.device, dtype=logits.dtype)
        logits[ids] -= self._params.presence_penalty + self._params.frequency_penalty * times
        return logits

    def _penalise(self, logits: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        scores = logits[seen]
        penalty = self._params.repetition_penalty
        logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
        return logits

    def _draw(self, logits: torch.Tensor) -> int:
        params = self._params
        vocabulary = logits.shape[0]
        if params.top_k or params.top_p < 1.0:
            kept = min(params.top_k or vocabulary, vocabulary)
            logits, ids = torch.topk(logits, kept)  # in falling order
        else:
            ids = None
        probabilities = torch.softmax(logits, dim=-1)
        if params.top_p < 1.0:
            # Everything before the token that crosses top_p stays, that token included.
            before = probabilities.cumsum(0) - probabilities
            probabilities = probabilities.masked_fill(before >= params.top_p, 0.0)
        if params.min_p > 0.0:
            probabilities = probabilities.masked_fill(probabilities < params.min_p * probabilities.max(), 0.0)
        place = torch.multinomial(probabilities, 1, generator=self._generator)
        return int(place if ids is None else ids[place])


@torch.inference_mode()
def logprobs_of(logprobs: torch.Tensor, token_id: int, top: int, text_of: Callable[[int], str]) -> TokenLogprobs:
    """What is told of a sampled token; `logprobs (vocabulary,)` are of the logits as the model gave them."""

    def told(one_id: int) -> TokenLogprob:
        return TokenLogprob(text_of(one_id), float(logprobs[one_id]))

    best = logprobs.topk(min(top, logprobs.shape[0])).indices.tolist() if top else []
    return TokenLogprobs(told(token_id), tuple(told(one_id) for one_id in best))
