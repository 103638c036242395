"""Chooses the next token from logits."""

from __future__ import annotations

import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence

import torch

from model_runtime.decoding.grammars import Constraint
from model_runtime.interface.events import TokenLogprob, TokenLogprobs
from model_runtime.interface.sampling_params import SamplingParams


@torch.inference_mode()
def are_numbers(logits: torch.Tensor) -> torch.Tensor:
    """bool `(rows,)` on the device: whether each row of float32 `logits (rows, vocabulary)` has no NaN or infinity. The
    minimum and maximum propagate NaN; nothing waits for the device. (`torch.aminmax` along a dimension takes 305 us for
    49,152 logits, these two take 20.)"""
    return torch.isfinite(logits.amax(dim=-1)) & torch.isfinite(logits.amin(dim=-1))


class Sampler:
    """One generation's sampler, with its own random stream and its own record of seen tokens. Engine thread only.

    `stop_token_ids` are the model's own; `constraint` says what keeps to the grammar that was asked for. The order is
    that of the literature's reference implementations: logit bias and tokens that may not be drawn, repetition penalty
    (Keskar et al. 2019, arXiv:1909.05858, over everything in the ledger), presence and frequency penalty (over this
    answer), temperature, top-k, top-p (Holtzman et al. 2019, arXiv:1904.09751), min-p (Nguyen et al. 2024,
    arXiv:2407.01082).
    """

    def __init__(
        self,
        params: SamplingParams,
        ledger: Sequence[int],
        device: torch.device,
        stop_token_ids: Collection[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self._params = params
        self._constraint = constraint
        self._taken_tokens = 0
        self._bias = _Bias(params.logit_bias, device) if params.logit_bias else None
        own_ends = stop_token_ids if params.ignore_eos or params.min_new_tokens else ()
        early_ends = {*own_ends, *params.stop_token_ids} if params.min_new_tokens else own_ends
        self._own_ends, self._early_ends = (
            torch.tensor(sorted(ends), dtype=torch.int64, device=device) for ends in (own_ends, early_ends)
        )
        self._generator = torch.Generator(device)
        self._generator.manual_seed(secrets.randbits(63) if params.seed is None else params.seed)
        window = params.penalty_window
        recent = ledger[max(0, len(ledger) - window) :] if window is not None else ()
        has_said = window != 0 and bool(params.presence_penalty or params.frequency_penalty)
        is_seen = window != 0 and params.repetition_penalty != 1.0
        self._seen = _Met(ledger if window is None else recent, device, window) if is_seen else None
        self._said = _Met(recent, device, window) if has_said else None

    @property
    def is_greedy(self) -> bool:
        """Whether it takes the argmax of the unchanged logits."""
        is_free = self._constraint is None and self._bias is None and self._seen is None and self._said is None
        return self._params.temperature == 0 and is_free and not len(self._forbidden)

    @property
    def _forbidden(self) -> torch.Tensor:
        """The ids that may not be drawn now: int64 `(ids,)` on the device."""
        if self._taken_tokens < self._params.min_new_tokens:
            return self._early_ends
        return self._own_ends if self._params.ignore_eos else self._own_ends[:0]

    def choose(self, logits: torch.Tensor) -> int:
        """Samples a token from float32 `logits (vocabulary,)`, which may be overwritten. Waits for the device."""
        token = int(self.pick(logits))
        self.took(token)
        return token

    @torch.inference_mode()  # the engine's logits are inference tensors, which nothing else may write to
    def pick(self, logits: torch.Tensor) -> torch.Tensor:
        """Like `choose`, but returns an int64 tensor without dimensions on the device and waits for nothing. The caller
        must then call `took`."""
        params, forbidden = self._params, self._forbidden
        if self._bias is not None:
            self._bias.add_to(logits)
        if len(forbidden):
            logits[forbidden] = -torch.inf
        if self._constraint is not None:
            self._constraint.mask(logits)
        if self._seen is not None:
            ids, penalty = self._seen.ids, params.repetition_penalty
            scores = logits[ids]
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            logits[ids] = torch.where(self._seen.times > 0, penalised, scores)
        if self._said is not None:
            times = self._said.times
            logits[self._said.ids] -= params.presence_penalty * (times > 0) + params.frequency_penalty * times
        return logits.argmax() if params.temperature == 0 else self._draw(logits / params.temperature)

    def took(self, token: int) -> None:
        """Records that `token` was picked and is part of the answer."""
        self._taken_tokens += 1
        if self._constraint is not None:
            self._constraint.took(token)
        for met in (self._seen, self._said):
            if met is not None:
                met.add(token)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        params = self._params
        vocabulary = logits.shape[0]
        if params.top_k or params.top_p < 1.0:
            kept = min(params.top_k or vocabulary, vocabulary)
            logits, ids = torch.topk(logits, kept)  # in descending order
        else:
            ids = None
        probabilities = torch.softmax(logits, dim=-1)
        if params.top_p < 1.0:
            # Keep all tokens up to and including the one that crosses top_p.
            before = probabilities.cumsum(0) - probabilities
            probabilities = probabilities.masked_fill(before >= params.top_p, 0.0)
        if params.min_p > 0.0:
            probabilities = probabilities.masked_fill(probabilities < params.min_p * probabilities.max(), 0.0)
        # What `torch.multinomial` does for one draw, without its checks, which wait for the GPU (pytorch issue 108968).
        races = torch.empty_like(probabilities).exponential_(generator=self._generator)
        place = (probabilities / races).argmax(0, keepdim=True)
        return (place if ids is None else ids[place])[0]


class _Bias:
    """What is added to the logits of some tokens, each named once."""

    def __init__(self, biases: Sequence[tuple[int, float]], device: torch.device) -> None:
        self._ids = torch.tensor([token_id for token_id, _ in biases], dtype=torch.int64, device=device)
        self._added = torch.tensor([added for _, added in biases], dtype=torch.float32, device=device)

    def add_to(self, logits: torch.Tensor) -> None:
        logits[self._ids] += self._added


class _Met:
    """Tokens that have occurred among the last `window` (None: all), and how often: 0 times, once they left it. Both
    tensors are on the device and are updated in place, so that nothing waits for it and nothing is sorted."""

    def __init__(self, token_ids: Sequence[int], device: torch.device, window: int | None) -> None:
        self._window = window
        self._last = deque[int]() if window is None else deque(token_ids)
        counts = Counter(token_ids)
        self._places = {token_id: place for place, token_id in enumerate(counts)}
        self._ids = torch.tensor(list(counts), dtype=torch.int64, device=device)
        self._times = torch.tensor(list(counts.values()), dtype=torch.float32, device=device)

    @property
    def ids(self) -> torch.Tensor:
        """int64 `(tokens,)`, each once."""
        return self._ids[: len(self._places)]

    @property
    def times(self) -> torch.Tensor:
        """float32 `(tokens,)`."""
        return self._times[: len(self._places)]

    def add(self, token_id: int) -> None:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            more = max(256, place)
            self._ids = torch.cat([self._ids, self._ids.new_zeros(more)])
            self._times = torch.cat([self._times, self._times.new_zeros(more)])
        self._ids[place].fill_(token_id)  # an assignment would copy from the host and wait
        self._times[place] += 1
        if self._window is None:
            return
        self._last.append(token_id)
        if len(self._last) > self._window:
            self._times[self._places[self._last.popleft()]] -= 1


@torch.inference_mode()
def logprobs_of(logprobs: torch.Tensor, token_id: int, top: int, text_of: Callable[[int], str]) -> TokenLogprobs:
    """The log-probabilities to report for a sampled token. `logprobs (vocabulary,)` come from the unchanged logits."""

    def told(one_id: int) -> TokenLogprob:
        return TokenLogprob(text_of(one_id), float(logprobs[one_id]))

    best = logprobs.topk(min(top, logprobs.shape[0])).indices.tolist() if top else []
    return TokenLogprobs(told(token_id), tuple(told(one_id) for one_id in best))
