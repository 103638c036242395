"""Work the engine has accepted: ids that are fed into a KV, and the events that report it."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from model_runtime.interface.events import Event, Finished, FinishReason, Listener, PrefillProgress
from model_runtime.interface.protocol import ReadRequest
from model_runtime.kv.slab import KVSlab

logger = logging.getLogger(__name__)


class Work(ABC):
    """What generating and idle reading have in common. Engine thread only, except `abort`, which any thread may call.

    `ledger` lists all ids that the KV must hold before anything is sampled. It is the beginning of a ledger of
    `whole_tokens` tokens, if that is longer.
    """

    def __init__(self, ledger: tuple[int, ...], slab: KVSlab, listener: Listener, whole_tokens: int = 0) -> None:
        self.ledger = ledger
        self.slab = slab
        self._whole_tokens = max(whole_tokens, len(ledger))
        self._listener = listener
        self._abort = threading.Event()
        self._submitted_at = time.perf_counter()
        self._unfed: list[int] = []
        self._fed_tokens = 0
        self._reused_tokens = 0
        self._is_rope_changed = False
        self._is_finished = False
        self._emitting = threading.RLock()  # the watchdog may finish it while the engine thread emits an event

    @abstractmethod
    def begin(self, context_limit_tokens: int) -> None:
        """Crops the slab to the prefix it shares with the ledger; the rest is to be fed. Raises
        `torch.OutOfMemoryError` when the slab cannot get its room."""

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether it gives way to every request."""

    @property
    def is_decoding(self) -> bool:
        """Whether its next step feeds the token that was sampled last."""
        return False

    @property
    def has_sampled(self) -> bool:
        """Whether a token was sampled already."""
        return False

    @property
    def fairness_key(self) -> str:
        """Prompts with different keys are read in turns."""
        return ""

    @property
    def is_aborted(self) -> bool:
        return self._abort.is_set()

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    @property
    def unfed_tokens(self) -> int:
        return len(self._unfed)

    @property
    def kv_tokens(self) -> int:
        return self.slab.length_tokens

    def abort(self) -> None:
        """Asks it to stop. The engine notices within one decode step or one layer of a prefill chunk."""
        self._abort.set()

    def next_ids(self, tokens: int) -> list[int]:
        """The next `tokens` ids to feed."""
        return self._unfed[:tokens]

    def logit_rows(self, tokens: int) -> int:
        """How many rows of logits a step that feeds `tokens` ids must return."""
        return 0

    def fed(self, tokens: int) -> None:
        """A forward has appended `tokens` rows to the slab."""
        del self._unfed[:tokens]
        if not self.has_sampled:
            self._fed_tokens += tokens
            self._emit(PrefillProgress(self._fed_tokens, self._fed_tokens + len(self._unfed)))

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Emits `Finished`. Only the first call has an effect."""
        with self._emitting:
            if self._is_finished:
                return
            self._is_finished = True
        self._emit(self._summary(reason, error))

    @abstractmethod
    def _summary(self, reason: FinishReason, error: str | None) -> Finished:
        """The last event."""

    def _crop_and_reserve(self, prefix: Sequence[int], room_tokens: int) -> None:
        """Keeps the rows of `prefix` that the slab holds already, if they have the rotary frequencies of the whole
        ledger's length, and reserves room for `room_tokens` tokens."""
        common_tokens = self.slab.common_prefix_tokens(prefix)
        self._is_rope_changed |= self.slab.use_rope_for(self._whole_tokens) and common_tokens > 0
        self._reused_tokens = self.slab.common_prefix_tokens(prefix)
        self.slab.crop(self._reused_tokens)
        self._unfed = list(self.ledger[self._reused_tokens :])
        self.slab.reserve(room_tokens)

    def _emit(self, event: Event) -> None:
        with self._emitting:
            if self._is_finished and not isinstance(event, Finished):
                return  # it was finished while its forward hung; later results are dropped
            try:
                self._listener(event)
            except Exception:  # a failing listener must not end other requests
                logger.exception("listener failed event=%s", type(event).__name__)


class Reading(Work):
    """Reads ids into a KV and samples nothing. To the scheduler it is a prefill that never starts decoding."""

    def __init__(self, request: ReadRequest, slab: KVSlab, listener: Listener) -> None:
        super().__init__(request.ledger, slab, listener, request.whole_tokens)

    @property
    def is_idle(self) -> bool:
        return True

    def begin(self, context_limit_tokens: int) -> None:
        """Finishes at once when the slab holds everything already: then only the crop was needed."""
        self._crop_and_reserve(self.ledger, min(len(self.ledger), context_limit_tokens))
        if not self._unfed:
            self.finish(FinishReason.READ)

    def fed(self, tokens: int) -> None:
        """Also finishes once everything is fed."""
        super().fed(tokens)
        if not self._unfed:
            self.finish(FinishReason.READ)

    def _summary(self, reason: FinishReason, error: str | None) -> Finished:
        return Finished(
            reason=reason,
            fed_tokens=self._fed_tokens,
            reused_tokens=self._reused_tokens,
            sampled_tokens=0,
            ttft_s=None,
            prefill_s=time.perf_counter() - self._submitted_at,
            decode_s=0.0,
            is_rope_changed=self._is_rope_changed,
            error=error,
        )
