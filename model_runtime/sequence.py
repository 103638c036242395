"""One generation inside the engine: what it still has to read, what it has sampled, when."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer

from model_runtime.kv_cache import KVSlab
from model_runtime.sampling import Sampler, logprobs_of
from model_runtime.text_stream import TextStream
from model_runtime.types import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Listener,
    PrefillProgress,
    TokenDelta,
)

logger = logging.getLogger(__name__)


class Sequence:
    """Engine thread only, except `abort`, which any thread may call."""

    def __init__(self, request: GenerationRequest, slab: KVSlab, listener: Listener, tokenizer: Tokenizer) -> None:
        self.request = request
        self.slab = slab
        self._listener = listener
        self._abort = threading.Event()
        self._submitted_at = time.perf_counter()
        self._first_token_at: float | None = None
        self._unfed: list[int] = []
        self._fed_tokens = 0
        self._reused_tokens = 0
        self._sampled_tokens = 0
        self._is_finished = False
        self._tokenizer = tokenizer
        ledger, sampling = request.ledger, request.sampling
        self._sampler = Sampler(sampling, ledger, slab.device)
        prefix = ledger[len(ledger) - request.answer_prefix_tokens :]
        self._text = TextStream(tokenizer, sampling.stop_strings, prefix)

    def begin(self, context_limit_tokens: int) -> None:
        """Crops the slab to what the ledger shares with it; the rest is to be fed. Raises `torch.OutOfMemoryError` when
        the answer cannot have its room."""
        ledger = self.request.ledger
        self._reused_tokens = self.slab.common_prefix_tokens(ledger[:-1])
        self.slab.crop(self._reused_tokens)
        self._unfed = list(ledger[self._reused_tokens :])
        self.slab.reserve(min(len(ledger) + self.request.sampling.max_new_tokens, context_limit_tokens))

    def abort(self) -> None:
        """Asks to stop; seen within one decode step or one layer of a prefill chunk."""
        self._abort.set()

    @property
    def is_idle(self) -> bool:
        return self.request.is_idle

    @property
    def is_aborted(self) -> bool:
        return self._abort.is_set()

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    @property
    def is_decoding(self) -> bool:
        return self._sampled_tokens > 0

    @property
    def unfed_tokens(self) -> int:
        return len(self._unfed)

    @property
    def kv_tokens(self) -> int:
        return self.slab.length_tokens

    def next_ids(self, tokens: int) -> list[int]:
        """The next `tokens` ids to feed."""
        return self._unfed[:tokens]

    def logit_rows(self, tokens: int) -> int:
        """How many rows of logits a step that feeds so many has to give: one, once all is fed."""
        return int(tokens == len(self._unfed))

    def fed(self, tokens: int) -> None:
        """A forward has appended that many to the slab."""
        del self._unfed[:tokens]
        if not self.is_decoding:
            self._fed_tokens += tokens
            self._emit(PrefillProgress(self._fed_tokens, self._fed_tokens + len(self._unfed)))

    def sample(self, logits: torch.Tensor, stop_token_ids: Iterable[int], context_limit_tokens: int) -> None:
        """Chooses a token from float32 `logits (vocabulary,)`, and finishes where an answer ends."""
        wanted = self.request.sampling.top_logprobs
        logprobs = None if wanted is None else torch.log_softmax(logits, dim=-1)  # before the sampler changes them
        token_id = self._sampler.choose(logits)
        told = None if wanted is None or logprobs is None else logprobs_of(logprobs, token_id, wanted, self._token_text)
        self._sampled_tokens += 1
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        self._unfed.append(token_id)
        if token_id in stop_token_ids:
            self._emit(TokenDelta(token_id, "", told))
            self.finish(FinishReason.STOP)
            return
        self._emit(TokenDelta(token_id, self._text.push(token_id), told))
        if self._text.stopped:
            self.finish(FinishReason.STOP_STRING)
        elif self._sampled_tokens >= self.request.sampling.max_new_tokens:
            self.finish(FinishReason.LENGTH)
        elif self.slab.length_tokens + 1 >= context_limit_tokens:
            self.finish(FinishReason.CONTEXT)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Emits `Finished`; only the first call counts."""
        if self._is_finished:
            return
        self._is_finished = True
        now = time.perf_counter()
        first = self._first_token_at
        self._emit(
            Finished(
                reason=reason,
                fed_tokens=self._fed_tokens,
                reused_tokens=self._reused_tokens,
                sampled_tokens=self._sampled_tokens,
                ttft_s=None if first is None else first - self._submitted_at,
                prefill_s=(first or now) - self._submitted_at,
                decode_s=0.0 if first is None else now - first,
                text_tail=self._text.tail(),
                error=error,
            )
        )

    def _token_text(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))

    def _emit(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception:  # a listener's mistake must not end everybody's answers
            logger.exception("listener failed event=%s", type(event).__name__)
