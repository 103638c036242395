"""One request on the scripted engine's thread."""

from __future__ import annotations

import codecs
import time
from dataclasses import dataclass, field

from model_runtime.interface.events import Finished, FinishReason, Listener
from model_runtime.interface.protocol import GenerationRequest, ReadRequest
from tests.sessions.scripted_kv import ScriptedKV


@dataclass(eq=False)
class ScriptedGeneration:
    """One request on the engine thread."""

    request: GenerationRequest | ReadRequest
    listener: Listener
    kv: ScriptedKV
    submitted_at: float = field(default_factory=time.monotonic)
    aborted: bool = False
    reused: int = 0
    fed: int = 0
    answer: list[int] | None = None  # ids still to be sampled
    sampled: list[int] = field(default_factory=list)
    held: str = ""  # decoded, but possibly the beginning of a stop string
    stop_string: str = ""  # that ended it
    cut_tokens: int = 0  # at the end of `sampled`, no part of the answer
    read_at: float | None = None
    first_at: float | None = None
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def abort(self) -> None:
        self.aborted = True

    @property
    def only_reads(self) -> bool:
        return isinstance(self.request, ReadRequest)

    @property
    def is_idle(self) -> bool:
        return isinstance(self.request, ReadRequest) or self.request.is_idle

    @property
    def asked(self) -> GenerationRequest:
        assert isinstance(self.request, GenerationRequest), "a request that only reads samples nothing"
        return self.request

    def begin(self) -> None:
        """Crops the KV to what it shares with the ledger; the last id of an answer's ledger is always fed."""
        ledger = self.request.ledger if self.only_reads else self.request.ledger[:-1]
        held = self.kv.tokens
        while self.reused < min(len(held), len(ledger)) and held[self.reused] == ledger[self.reused]:
            self.reused += 1
        self.kv.crop(self.reused)

    def show(self, token: int) -> tuple[str, bool]:
        """The text that may be shown with this token, and whether a stop string is complete."""
        stops = self.asked.sampling.stop_strings
        self.held += self.decoder.decode(bytes([token])) if token < 256 else ""
        if stop := next((s for s in stops if s in self.held), None):
            shown, self.held, self.stop_string = self.held.split(stop)[0], "", stop
            return shown, True
        kept = max((n for s in stops for n in range(len(s)) if self.held.endswith(s[:n])), default=0)
        shown = self.held[: len(self.held) - kept]
        self.held = self.held[len(shown) :]
        return shown, False

    def cut_stop_string(self) -> None:
        """Ids are bytes, so the stop string always begins with one of its own."""
        text = bytes(token for token in self.sampled if token < 256).decode("utf-8", "replace")
        end = min(place for stop in self.asked.sampling.stop_strings if (place := text.find(stop)) >= 0)
        self.cut_tokens = len(self.sampled) - len(text[:end].encode())
        self.kv.crop(len(self.request.ledger) + len(self.sampled) - self.cut_tokens - 1)

    def finished(self, reason: FinishReason, error: str | None) -> Finished:
        now = time.monotonic()
        read_at = self.read_at or now
        return Finished(
            reason=reason,
            fed_tokens=self.fed,
            reused_tokens=self.reused,
            sampled_tokens=len(self.sampled),
            ttft_s=self.first_at - self.submitted_at if self.first_at else None,
            prefill_s=read_at - self.submitted_at,
            decode_s=now - read_at,
            text_tail=self.held + self.decoder.decode(b"", final=True) if self.sampled else "",
            error=error,
            stop_string=self.stop_string,
            cut_tokens=self.cut_tokens,
        )
