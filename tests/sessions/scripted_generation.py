"""One request on the scripted engine's thread."""

from __future__ import annotations

import codecs
import time
from dataclasses import dataclass, field

from model_runtime.types import GenerationRequest, Listener
from tests.sessions.scripted_kv import ScriptedKV


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
    held: str = ""  # decoded, but it may be the beginning of a stop string
    read_at: float | None = None
    first_at: float | None = None
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def abort(self) -> None:
        self.aborted = True

    def show(self, token: int) -> tuple[str, bool]:
        """The text that may be shown with this token, and whether a stop string is complete."""
        stops = self.request.sampling.stop_strings
        self.held += self.decoder.decode(bytes([token])) if token < 256 else ""
        if stop := next((s for s in stops if s in self.held), None):
            shown, self.held = self.held.split(stop)[0], ""
            return shown, True
        kept = max((n for s in stops for n in range(len(s)) if self.held.endswith(s[:n])), default=0)
        shown = self.held[: len(self.held) - kept]
        self.held = self.held[len(shown) :]
        return shown, False
