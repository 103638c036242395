"""An engine without a model, for tests: a real thread, real bytes, real cropping, and answers from a function.

A token is a byte, plus a few control ids from 256 on. What the function sees is what the KV really holds after
prefill, never the request's ledger: another conversation's KV, or one that was cropped wrongly, gives a wrong answer.
So does a row that was restored behind other tokens than it was computed from (`scripted_kv`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from model_runtime.interface.errors import EngineClosed, SegmentNotSaved, SegmentRefused
from model_runtime.interface.events import Listener
from model_runtime.interface.findings import Verification
from model_runtime.interface.numerics import line
from model_runtime.interface.protocol import KV, GenerationRequest, ModelInfo, Pulse, ReadRequest, Segment
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import SegmentIdentity
from tests.polling import pause
from tests.sessions.byte_template import ByteTemplate, ForgetfulTemplate
from tests.sessions.scripted_answers import chat_answer, checksum, checksum_answer, text_of
from tests.sessions.scripted_generation import ScriptedGeneration
from tests.sessions.scripted_kv import (
    ScriptedKV,
    ScriptedSegment,
    held_by,
    read_segment,
    rounded_up,
    write_segment,
)
from tests.sessions.scripted_thread import CHUNK_TOKENS, AnswerFunction, ScriptedThread

__all__ = [
    "ByteTemplate",
    "ForgetfulTemplate",
    "ScriptedEngine",
    "ScriptedKV",
    "chat_answer",
    "checksum",
    "checksum_answer",
    "text_of",
]


class ScriptedEngine(ScriptedThread):
    """Satisfies `interface.protocol.Engine`. `fail_save` and `fail_load` are asked with a segment's identity, on the
    thread that saves or loads, and return the sentence to fail with, or None."""

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
        quantization: str = "none",
    ) -> None:
        super().__init__(answer, token_delay_s, fed_token_delay_s, context_limit_tokens, max_concurrent)
        self.fail_save: Callable[[SegmentIdentity], str | None] = lambda identity: None
        self.fail_load: Callable[[SegmentIdentity], str | None] = lambda identity: None
        self.idle_kvs: Callable[[], Sequence[KV]] = tuple
        self.shown_pulse = Pulse(True, 0.0, 0.0)
        self.save_delay_s = 0.0
        self.load_delay_s = 0.0
        self._bytes_per_token = bytes_per_token
        self._info = ModelInfo(
            name=name,
            quantization="none (scripted)",
            kernel="script",
            device="cpu",
            context_limit_tokens=context_limit_tokens,
            kv_bytes_per_token=bytes_per_token,
            weights_bytes=0,
            fingerprint=line(weights=f"{name}/{tokenizer_fingerprint}", quantization=quantization),
            tokenizer_fingerprint=tokenizer_fingerprint,
            default_sampling=default_sampling or SamplingParams(temperature=0.0),
        )

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def max_concurrent(self) -> int:
        return self._max_concurrent

    def give_memory_back_with(self, idle_kvs: Callable[[], Sequence[KV]]) -> None:
        self.idle_kvs = idle_kvs

    def pulse(self) -> Pulse:
        return self.shown_pulse

    def rebuild(self) -> None:
        raise EngineClosed("A script is not played again.")

    def new_kv(self) -> ScriptedKV:
        kv = ScriptedKV(self._bytes_per_token)
        with self._lock:
            self.alive.append(kv)
        return kv

    def kv_bytes(self, tokens: int) -> int:
        return rounded_up(tokens) * self._bytes_per_token

    def read(self, request: ReadRequest, listener: Listener) -> ScriptedGeneration:
        return self.submit(request, listener)

    def submit(self, request: GenerationRequest | ReadRequest, listener: Listener) -> ScriptedGeneration:
        if self._closed:
            raise EngineClosed("The model's engine has been closed.")
        assert len(request.ledger) < self._info.context_limit_tokens, "a ledger that the context does not hold"
        assert isinstance(request.kv, ScriptedKV)
        assert not request.kv.busy, "two generations on one KV"
        assert request.ledger, "an empty ledger"
        request.kv.busy = True
        self._revive(request.kv)
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

    def stage(self, kv: KV, identity: SegmentIdentity, before: Sequence[int] | None = None) -> ScriptedSegment:
        return self.stage_run(kv, [identity], before)[0]  # type: ignore[return-value]

    def stage_run(
        self, kv: KV, identities: Sequence[SegmentIdentity], before: Sequence[int] | None = None
    ) -> list[Segment]:
        assert isinstance(kv, ScriptedKV)

        def copy() -> list[Segment]:
            first = identities[0]
            if before is not None and kv.tokens[: first.start_tokens] != list(before):
                raise ValueError("the KV does not hold these tokens in front of the segment")
            return [self._copy_out(kv, identity) for identity in identities]

        return self.between_steps(copy)

    def _copy_out(self, kv: ScriptedKV, identity: SegmentIdentity) -> ScriptedSegment:
        start, end = identity.start_tokens, identity.end_tokens
        if tuple(kv.tokens[start:end]) != identity.token_ids:
            raise ValueError("the KV does not hold the tokens of this segment")
        return ScriptedSegment(identity, tuple(kv.marks[start:end]), self.segment_bytes(end - start))

    def restore(self, kv: KV, segments: Sequence[Segment], room_tokens: int = 0) -> float:
        assert isinstance(kv, ScriptedKV)
        assert not kv.busy, "restored into a KV with a running generation"
        self._revive(kv)

        def copy() -> float:
            started = time.perf_counter()
            for segment in segments:
                assert isinstance(segment, ScriptedSegment)
                kv.append_segment(segment)
                self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
            return time.perf_counter() - started

        return self.between_steps(copy)

    def join(self, identity: SegmentIdentity, segments: Sequence[Segment]) -> ScriptedSegment:
        marks = tuple(mark for s in segments if isinstance(s, ScriptedSegment) for mark in s.marks)
        return ScriptedSegment(identity, marks, self.segment_bytes(len(identity.token_ids)))

    def copy_beginning(self, source: KV, target: KV, ids: Sequence[int], least_tokens: int) -> tuple[int, int]:
        assert isinstance(source, ScriptedKV)
        assert isinstance(target, ScriptedKV)
        assert not target.busy, "copied into a KV with a running generation"
        self._revive(target)
        return self.between_steps(lambda: target.copy_beginning(source, list(ids), least_tokens))

    def save(self, segment: Segment, path: Path) -> int:
        assert isinstance(segment, ScriptedSegment)
        pause(self.save_delay_s)
        if sentence := self.fail_save(segment.identity):
            raise SegmentNotSaved(sentence)
        return write_segment(segment, path)

    def load(self, identity: SegmentIdentity, path: Path) -> ScriptedSegment:
        pause(self.load_delay_s)
        if sentence := self.fail_load(identity):
            raise SegmentRefused(sentence)
        return read_segment(identity, path, self.segment_bytes(len(identity.token_ids)))

    def verify(
        self,
        scratch: KV,
        ledger: Sequence[int],
        copies: Sequence[KV | Iterable[Segment]],
        must_stop: Callable[[], bool],
        is_long_rope: bool = False,
    ) -> Verification | None:
        assert isinstance(scratch, ScriptedKV)
        self._revive(scratch)
        kept = ledger[:-1]
        for start in range(0, len(kept), CHUNK_TOKENS):
            if must_stop():
                return None
            pause(len(kept[start : start + CHUNK_TOKENS]) * self.fed_token_delay_s)
            self.between_steps(lambda s=start: scratch.append(kept[s : s + CHUNK_TOKENS]))  # type: ignore[misc]
            self.peak_bytes = max(self.peak_bytes, self.allocated_bytes)
        found = []
        for copy in copies:
            tokens, marks = held_by(copy)
            found.append(self.between_steps(lambda t=tokens, m=marks: scratch.compare(t, m)))  # type: ignore[misc]
        agrees = found[-1].agrees
        return Verification(len(kept), 0.0 if agrees else 9.0, 0.0 if agrees else 3.0, tuple(found), agrees)

    def segment_bytes(self, tokens: int) -> int:
        return tokens * self._bytes_per_token

    def _revive(self, kv: ScriptedKV) -> None:
        """Empties a KV, which may then be used again."""
        with self._lock:
            if kv not in self.alive:
                self.alive.append(kv)

    def estimate_read_s(self, start_tokens: int, end_tokens: int) -> float:
        return max(0, end_tokens - start_tokens) * max(self.fed_token_delay_s, 0.001)
