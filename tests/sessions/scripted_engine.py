"""A twin of the engine without a model: a real thread, real bytes, real cropping, and answers from a function.

A token is a byte, plus a few control ids from 256 on. What the function sees is what the KV really holds after
prefill, never the request's ledger: a KV that belongs to somebody else, or was cropped wrongly, gives a wrong answer.
"""

from __future__ import annotations

import codecs
import queue
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from model_runtime.errors import EngineClosed, PromptTooLong
from model_runtime.types import (
    KV,
    Finished,
    FinishReason,
    GenerationRequest,
    Listener,
    ModelInfo,
    PrefillProgress,
    SamplingParams,
    TokenDelta,
)
from tests.sessions.byte_template import END, USER, ByteTemplate, ForgetfulTemplate

__all__ = ["ByteTemplate", "ForgetfulTemplate", "ScriptedEngine", "ScriptedKV", "chat_answer", "checksum_answer"]

GROWTH_TOKENS = 16
CHUNK_TOKENS = 64

AnswerFunction = Callable[[tuple[int, ...]], Sequence[int]]


def checksum(ledger: Sequence[int]) -> str:
    """Eight characters that depend on every id and its place."""
    return f"{zlib.crc32(b''.join(i.to_bytes(4, 'little') for i in ledger)):08x}"


def checksum_answer(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """The ledger's checksum and its length, then up to seven words, then the stop token."""
    mark = checksum(ledger)
    text = f"{mark} {len(ledger)}" + " é→word" * (int(mark, 16) % 8)
    return (*text.encode(), END)


def chat_answer(ledger: tuple[int, ...]) -> tuple[int, ...]:
    """A longer Markdown answer, for looking at the page by hand."""
    last_user = max(i for i, token in enumerate(ledger) if token == USER)
    asked = bytes(i for i in ledger[last_user + 1 :] if i < 256).decode("utf-8", errors="replace")
    text = (
        f"You asked **{asked[:60].strip()}**. I have read {len(ledger):,} tokens of this conversation.\n\n"
        f"- checksum `{checksum(ledger)}`\n- café, naïve, 日本語\n\n"
        "```python\ndef warm(cache):\n    return cache.length_tokens\n```\n\nAnything else?"
    )
    return (*text.encode(), END)


def text_of(token_ids: Sequence[int]) -> str:
    return bytes(i for i in token_ids if i < 256).decode("utf-8", errors="replace")


class ScriptedKV:
    """Token ids in place of keys and values; bytes grow in steps and stay after a crop, like a slab's."""

    def __init__(self, bytes_per_token: int) -> None:
        self.tokens: list[int] = []
        self.busy = False
        self.capacity_tokens = 0
        self._bytes_per_token = bytes_per_token

    @property
    def length_tokens(self) -> int:
        return len(self.tokens)

    @property
    def allocated_bytes(self) -> int:
        return self.capacity_tokens * self._bytes_per_token

    def append(self, ids: Sequence[int]) -> None:
        self.tokens.extend(ids)
        self.capacity_tokens = max(self.capacity_tokens, _rounded_up(len(self.tokens)))

    def clear(self) -> None:
        self.tokens.clear()
        self.capacity_tokens = 0


def _rounded_up(tokens: int) -> int:
    return -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS


@dataclass(eq=False)
class ScriptedGeneration:
    """One request on the engine thread."""

    request: GenerationRequest
    listener: Listener
    kv: ScriptedKV
    submitted_at: float = field(default_factory=time.monotonic)
    aborted: bool = False
    reused: int = 0
    fed: int = 0
    answer: list[int] | None = None  # ids still to be sampled
    sampled: list[int] = field(default_factory=list)
    text: str = ""
    read_at: float | None = None
    first_at: float | None = None
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def abort(self) -> None:
        self.aborted = True


class ScriptedEngine:
    """Satisfies `model_runtime.types.Engine`.

    `answer` maps what the KV holds to the ids to sample. `fail` is asked before every step with the generation and
    returns the sentence to fail with, or None. `on_step` is called on the engine thread after every step. `counts` has
    one `(ledger, fed, reused)` per ended generation.
    """

    def __init__(
        self,
        answer: AnswerFunction = checksum_answer,
        token_delay_s: float = 0.0,
        fed_token_delay_s: float = 0.0,
        context_limit_tokens: int = 8192,
        bytes_per_token: int = 1024,
        max_concurrent: int = 4,
        name: str = "Scripted-1B",
        tokenizer_fingerprint: str = "bytes",
        default_sampling: SamplingParams | None = None,
    ) -> None:
        self.answer = answer
        self.token_delay_s = token_delay_s
        self.fed_token_delay_s = fed_token_delay_s
        self.fail: Callable[[ScriptedGeneration], str | None] = lambda generation: None
        self.on_step: Callable[[], None] = lambda: None
        self.counts: list[tuple[tuple[int, ...], int, int]] = []
        self.alive: list[ScriptedKV] = []
        self.peak_bytes = 0
        self._max_concurrent = max_concurrent
        self._bytes_per_token = bytes_per_token
        self._info = ModelInfo(
            name=name,
            quantization="none (scripted)",
            kernel="script",
            device="cpu",
            context_limit_tokens=context_limit_tokens,
            kv_bytes_per_token=bytes_per_token,
            weights_bytes=0,
            fingerprint=f"{name}/{tokenizer_fingerprint}",
            tokenizer_fingerprint=tokenizer_fingerprint,
            default_sampling=default_sampling or SamplingParams(temperature=0.0),
        )
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._running: list[ScriptedGeneration] = []
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="scripted-engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def max_concurrent(self) -> int:
        return self._max_concurrent

    @property
    def allocated_bytes(self) -> int:
        with self._lock:
            return sum(kv.allocated_bytes for kv in self.alive)

    def new_kv(self) -> ScriptedKV:
        kv = ScriptedKV(self._bytes_per_token)
        with self._lock:
            self.alive.append(kv)
        return kv

    def kv_bytes(self, tokens: int) -> int:
        return _rounded_up(tokens) * self._bytes_per_token

    def submit(self, request: GenerationRequest, listener: Listener) -> ScriptedGeneration:
        if self._closed:
            raise EngineClosed("The model's engine has been closed.")
        if len(request.ledger) >= self._info.context_limit_tokens:
            raise PromptTooLong(f"{len(request.ledger):,} tokens do not fit.")
        assert isinstance(request.kv, ScriptedKV)
        assert not request.kv.busy, "two generations on one KV"
        assert request.ledger, "an empty ledger"
        request.kv.busy = True
        generation = ScriptedGeneration(request, listener, request.kv)
        self._inbox.put(lambda: self._start(generation))
        return generation

    def release(self, kv: KV) -> None:
        assert isinstance(kv, ScriptedKV)
        assert not kv.busy, "released a KV with a running generation"
        done = threading.Event()

        def free() -> None:
            kv.clear()
            with self._lock:
                if kv in self.alive:
                    self.alive.remove(kv)
            done.set()

        if self._closed:
            free()
            return
        self._inbox.put(free)
        while not done.wait(0.05):
            if not self._thread.is_alive():
                free()

    def estimate_read_s(self, start_tokens: int, end_tokens: int) -> float:
        return max(0, end_tokens - start_tokens) * max(self.fed_token_delay_s, 0.001)

    def close(self) -> None:
        self._closed = True
        self._inbox.put(None)
        self._thread.join(timeout=5)

    # On the engine thread.

    def _loop(self) -> None:
        while True:
            try:
                command = self._inbox.get(block=not self._running)
            except queue.Empty:
                self._step()
                continue
            if command is None:
                break
            command()
        while not self._inbox.empty():
            if command := self._inbox.get():
                command()
        for generation in list(self._running):
            self._finish(generation, FinishReason.ABORTED)
        for kv in list(self.alive):
            kv.clear()

    def _start(self, generation: ScriptedGeneration) -> None:
        assert len(self._running) < self._max_concurrent, "more generations than max_concurrent"
        held, ledger = generation.kv.tokens, generation.request.ledger
        common = 0
        while common < min(len(held), len(ledger) - 1) and held[common] == ledger[common]:
            common += 1
        del held[common:]
        generation.reused = common
        self._running.append(generation)

    def _step(self) -> None:
        reading = [g for g in self._running if g.answer is None]
        for generation in [g for g in self._running if g.answer is not None] + reading[:1]:
            if generation.aborted:
                self._finish(generation, FinishReason.ABORTED)
            elif sentence := self.fail(generation):
                del generation.kv.tokens[generation.reused :]
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
        request, kv = generation.request, generation.kv
        chunk = request.ledger[kv.length_tokens : kv.length_tokens + CHUNK_TOKENS]
        time.sleep(len(chunk) * self.fed_token_delay_s)
        kv.append(chunk)
        generation.fed += len(chunk)
        total = len(request.ledger) - generation.reused
        generation.listener(PrefillProgress(generation.fed, total))
        if generation.fed == total:
            generation.read_at = time.monotonic()
            prompt_tokens = kv.length_tokens - request.answer_prefix_tokens
            generation.answer = list(self.answer(tuple(kv.tokens[:prompt_tokens])))[request.answer_prefix_tokens :]
            for token in kv.tokens[prompt_tokens:]:
                generation.decoder.decode(bytes([token]) if token < 256 else b"")

    def _sample(self, generation: ScriptedGeneration) -> None:
        time.sleep(self.token_delay_s)
        assert generation.answer is not None
        request, kv = generation.request, generation.kv
        if generation.sampled:
            kv.append(generation.sampled[-1:])
        token = generation.answer.pop(0) if generation.answer else END
        generation.first_at = generation.first_at or time.monotonic()
        generation.sampled.append(token)
        text = generation.decoder.decode(bytes([token])) if token < 256 else ""
        generation.text += text
        generation.listener(TokenDelta(token, text))
        if stop := next((s for s in request.sampling.stop_strings if s in generation.text), None):
            self._finish(
                generation, FinishReason.STOP_STRING, trimmed=len(generation.text) - generation.text.find(stop)
            )
        elif token == END:
            self._finish(generation, FinishReason.STOP)
        elif len(generation.sampled) >= request.sampling.max_new_tokens:
            self._finish(generation, FinishReason.LENGTH)
        elif len(request.ledger) + len(generation.sampled) >= self._info.context_limit_tokens:
            self._finish(generation, FinishReason.CONTEXT)

    def _finish(
        self, generation: ScriptedGeneration, reason: FinishReason, error: str | None = None, trimmed: int = 0
    ) -> None:
        now = time.monotonic()
        read_at = generation.read_at or now
        self._running.remove(generation)
        generation.kv.busy = False
        self.counts.append((generation.request.ledger, generation.fed, generation.reused))
        generation.listener(
            Finished(
                reason=reason,
                fed_tokens=generation.fed,
                reused_tokens=generation.reused,
                sampled_tokens=len(generation.sampled),
                ttft_s=generation.first_at - generation.submitted_at if generation.first_at else None,
                prefill_s=read_at - generation.submitted_at,
                decode_s=now - read_at,
                text_tail=generation.decoder.decode(b"", final=True) if generation.sampled else "",
                trimmed_chars=trimmed,
                error=error,
            )
        )
