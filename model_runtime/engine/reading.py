"""A request that only reads: ids go into a KV while nobody waits for anything, and no token is sampled."""

from __future__ import annotations

import logging
import threading
import time

from model_runtime.interface.events import Event, Finished, FinishReason, Listener, PrefillProgress
from model_runtime.interface.protocol import ReadRequest
from model_runtime.kv.slab import KVSlab

logger = logging.getLogger(__name__)


class Reading:
    """Engine thread only, except `abort`, which any thread may call. To the scheduler it is a prefill that never ends
    in a token."""

    is_idle = True
    is_decoding = False
    fairness_key = ""

    def __init__(self, request: ReadRequest, slab: KVSlab, listener: Listener) -> None:
        self.request = request
        self.slab = slab
        self._listener = listener
        self._abort = threading.Event()
        self._submitted_at = time.perf_counter()
        self._unfed: list[int] = []
        self._fed_tokens = 0
        self._reused_tokens = 0
        self._is_finished = False
        self._emitting = threading.RLock()  # the watchdog may end it while its thread is at it

    def begin(self, context_limit_tokens: int) -> None:
        """Crops the slab to what it shares with the ids; the rest is to be fed. Nothing may be left: then this was
        about the crop. Raises `torch.OutOfMemoryError` when the ids cannot have their room."""
        self._reused_tokens = self.slab.common_prefix_tokens(self.request.ledger)
        self.slab.crop(self._reused_tokens)
        self._unfed = list(self.request.ledger[self._reused_tokens :])
        self.slab.reserve(min(len(self.request.ledger), context_limit_tokens))
        if not self._unfed:
            self.finish(FinishReason.READ)

    def abort(self) -> None:
        """Asks to stop; seen within one layer."""
        self._abort.set()

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

    def next_ids(self, tokens: int) -> list[int]:
        """The next `tokens` ids to feed."""
        return self._unfed[:tokens]

    def logit_rows(self, tokens: int) -> int:
        """None: nothing is sampled."""
        return 0

    def fed(self, tokens: int) -> None:
        """A forward has appended that many to the slab."""
        del self._unfed[:tokens]
        self._fed_tokens += tokens
        self._emit(PrefillProgress(self._fed_tokens, self._fed_tokens + len(self._unfed)))
        if not self._unfed:
            self.finish(FinishReason.READ)

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """Emits `Finished`; only the first call counts."""
        with self._emitting:
            if self._is_finished:
                return
            self._is_finished = True
        self._emit(
            Finished(
                reason=reason,
                fed_tokens=self._fed_tokens,
                reused_tokens=self._reused_tokens,
                sampled_tokens=0,
                ttft_s=None,
                prefill_s=time.perf_counter() - self._submitted_at,
                decode_s=0.0,
                error=error,
            )
        )

    def _emit(self, event: Event) -> None:
        with self._emitting:
            if self._is_finished and not isinstance(event, Finished):
                return  # it was given up while a forward hung; nobody is told what comes of that
            try:
                self._listener(event)
            except Exception:  # a listener's mistake must not end everybody's answers
                logger.exception("listener failed event=%s", type(event).__name__)
