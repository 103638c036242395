"""The scripted engine's thread: it handles requests between two steps, and each step follows the script."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from model_runtime.interface.errors import EngineClosed
from model_runtime.interface.events import FinishReason, PrefillProgress, TokenDelta
from tests.polling import pause
from tests.sessions.byte_template import END
from tests.sessions.scripted_generation import ScriptedGeneration
from tests.sessions.scripted_kv import ScriptedKV

CHUNK_TOKENS = 64

AnswerFunction = Callable[[tuple[int, ...]], Sequence[int]]
T = TypeVar("T")


class ScriptedThread:
    """`answer` maps what the KV holds to the ids to sample. `fail` is asked before every step with the generation and
    returns the sentence to fail with, or None. `on_step` is called on the thread after every step. `counts` has one
    `(ledger, fed, reused)` per ended generation, `idle_counts` one `(reason, ledger, fed, reused)` per ended idle work.
    `alive` are the KVs that may hold bytes, `peak_bytes` the most they ever held together."""

    def __init__(
        self,
        answer: AnswerFunction,
        token_delay_s: float,
        fed_token_delay_s: float,
        context_limit_tokens: int,
        max_concurrent: int,
    ) -> None:
        self.answer = answer
        self.token_delay_s = token_delay_s
        self.fed_token_delay_s = fed_token_delay_s
        self.fail: Callable[[ScriptedGeneration], str | None] = lambda generation: None
        self.on_step: Callable[[], None] = lambda: None
        self.counts: list[tuple[tuple[int, ...], int, int]] = []
        self.idle_counts: list[tuple[FinishReason, tuple[int, ...], int, int]] = []
        self.alive: list[ScriptedKV] = []
        self.peak_bytes = 0
        self._context_limit_tokens = context_limit_tokens
        self._max_concurrent = max_concurrent
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.running: list[ScriptedGeneration] = []
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="scripted-engine", daemon=True)
        self._thread.start()

    @property
    def allocated_bytes(self) -> int:
        with self._lock:
            return sum(kv.allocated_bytes for kv in self.alive)

    def close(self) -> None:
        self._closed = True
        self._inbox.put(None)
        self._thread.join(timeout=5)

    def between_steps(self, call: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(call())
            except Exception as error:
                done.set_exception(error)

        if self._closed:
            raise EngineClosed("The model's engine has been closed.")
        self._inbox.put(run)
        while True:
            try:
                return done.result(timeout=0.05)
            except TimeoutError:
                if not self._thread.is_alive() and not done.done():
                    raise EngineClosed("The model's engine has been closed.") from None

    def _loop(self) -> None:
        while True:
            try:
                command = self._inbox.get(block=not self.running)
            except queue.Empty:
                self._step()
                continue
            if command is None:
                break
            command()
        while not self._inbox.empty():
            if command := self._inbox.get():
                command()
        for generation in list(self.running):
            self._finish(generation, FinishReason.ABORTED)
        for kv in list(self.alive):
            kv.clear()

    def _start(self, generation: ScriptedGeneration) -> None:
        idle = [g for g in self.running if g.is_idle]
        self.running.append(generation)
        if generation.is_idle and len(idle) < len(self.running) - 1:
            self._finish(generation, FinishReason.PREEMPTED)
            return
        for other in idle if not generation.is_idle else ():
            self._finish(other, FinishReason.PREEMPTED)
        assert len(self.running) <= self._max_concurrent, "more generations than max_concurrent"
        generation.begin()
        if generation.only_reads and generation.kv.length_tokens == len(generation.request.ledger):
            self._finish(generation, FinishReason.READ)

    def _step(self) -> None:
        reading = [g for g in self.running if g.answer is None]
        for generation in [g for g in self.running if g.answer is not None] + reading[:1]:
            if generation.aborted:
                self._finish(generation, FinishReason.ABORTED)
            elif sentence := self.fail(generation):
                generation.kv.crop(generation.reused)
                self._finish(generation, FinishReason.FAILED, error=sentence)
            else:
                self._advance(generation)
        for generation in reading[1:]:
            if generation.aborted:
                self._finish(generation, FinishReason.ABORTED)
        self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        self.on_step()

    def _advance(self, generation: ScriptedGeneration) -> None:
        try:
            if generation.answer is None:
                self._read(generation)
            else:
                self._sample(generation)
        except Exception as error:  # the thread outlives a broken answer function
            self._finish(generation, FinishReason.FAILED, error=f"The script is broken: {error!r}")

    def _read(self, generation: ScriptedGeneration) -> None:
        kv, ledger = generation.kv, generation.request.ledger
        chunk = ledger[kv.length_tokens : kv.length_tokens + CHUNK_TOKENS]
        if not self._pause(generation, len(chunk)):
            return  # preempted: this chunk is dropped between two layers
        kv.append(chunk)
        generation.fed += len(chunk)
        total = len(ledger) - generation.reused
        generation.listener(PrefillProgress(generation.fed, total))
        if generation.fed == total and generation.only_reads:
            kv.check()
            self._finish(generation, FinishReason.READ)
        elif generation.fed == total:
            request = generation.asked
            generation.read_at = time.monotonic()
            kv.check()
            prompt_tokens = kv.length_tokens - request.answer_prefix_tokens
            generation.answer = list(self.answer(tuple(kv.tokens[:prompt_tokens])))[request.answer_prefix_tokens :]
            for token in kv.tokens[prompt_tokens:]:
                generation.decoder.decode(bytes([token]) if token < 256 else b"")

    def _pause(self, generation: ScriptedGeneration, tokens: int) -> bool:
        """Takes as long as reading does. False if idle reading is preempted."""
        for _ in range(tokens if self.fed_token_delay_s else 0):
            pause(self.fed_token_delay_s)
            if generation.is_idle and (generation.aborted or not self._inbox.empty()):
                return False
        return True

    def _sample(self, generation: ScriptedGeneration) -> None:
        pause(self.token_delay_s)
        assert generation.answer is not None
        request, kv = generation.asked, generation.kv
        if generation.sampled:
            kv.append(generation.sampled[-1:])
        token = generation.answer.pop(0) if generation.answer else END
        generation.first_at = generation.first_at or time.monotonic()
        generation.sampled.append(token)
        shown, is_stopped = generation.show(token)
        generation.listener(TokenDelta(token, shown))
        if is_stopped:
            generation.cut_stop_string()
            self._finish(generation, FinishReason.STOP_STRING)
        elif token == END:
            self._finish(generation, FinishReason.STOP)
        elif len(generation.sampled) >= request.sampling.max_new_tokens:
            self._finish(generation, FinishReason.LENGTH)
        elif len(request.ledger) + len(generation.sampled) >= self._context_limit_tokens:
            self._finish(generation, FinishReason.CONTEXT)

    def _finish(self, generation: ScriptedGeneration, reason: FinishReason, error: str | None = None) -> None:
        self.running.remove(generation)
        generation.kv.busy = False
        count = (generation.request.ledger, generation.fed, generation.reused)
        self.idle_counts.append((reason, *count)) if generation.is_idle else self.counts.append(count)
        generation.listener(generation.finished(reason, error))
