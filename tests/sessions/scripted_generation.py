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
    text: str = ""
    read_at: float | None = None
    first_at: float | None = None
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def abort(self) -> None:
        self.aborted = True
