"""The engine as the rest of the program sees it: what is asked of it, and what it answers. Imports no torch, so that
`sessions` may import it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from model_runtime.drift import ColdDrift
from model_runtime.logprobs import TokenLogprobs
from model_runtime.segments import SegmentIdentity
from model_runtime.verdict import Verification


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. `temperature == 0` is greedy; `top_k == 0`, `top_p == 1`, `min_p == 0` are off.

    `presence_penalty` is taken once, `frequency_penalty` as often as it was sampled, from the logit of every token that
    this answer already has. `top_logprobs` asks for the log-probability of every sampled token, and of so many of the
    likeliest beside it; None asks for nothing.

    Raises `ValueError` with a sentence for a person when a value is out of range.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    seed: int | None = None
    stop_strings: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        _require(0.0 <= self.temperature <= 5.0, f"Temperature must lie between 0 and 5, not {self.temperature}.")
        _require(0.0 < self.top_p <= 1.0, f"Top-p must lie above 0 and at most at 1, not {self.top_p}.")
        _require(0 <= self.top_k <= 1_000_000, f"Top-k must be 0 (off) or a positive whole number, not {self.top_k}.")
        _require(0.0 <= self.min_p <= 1.0, f"Min-p must lie between 0 and 1, not {self.min_p}.")
        _require(
            0.1 <= self.repetition_penalty <= 10.0,
            f"Repetition penalty must lie between 0.1 and 10, not {self.repetition_penalty}.",
        )
        _require(
            1 <= self.max_new_tokens <= 1_000_000,
            f"Max new tokens must be a positive whole number, not {self.max_new_tokens}.",
        )
        _require(
            self.seed is None or 0 <= self.seed < 2**63,
            f"Seed must be empty or a whole number from 0 to 2^63 - 1, not {self.seed}.",
        )
        _require(len(self.stop_strings) <= 16, f"At most 16 stop strings are allowed, not {len(self.stop_strings)}.")
        _require(all(self.stop_strings), "A stop string must not be empty.")
        for name, penalty in (("Presence", self.presence_penalty), ("Frequency", self.frequency_penalty)):
            _require(-2.0 <= penalty <= 2.0, f"{name} penalty must lie between -2 and 2, not {penalty}.")
        _require(
            self.top_logprobs is None or 0 <= self.top_logprobs <= 20,
            f"Top logprobs must lie between 0 and 20, not {self.top_logprobs}.",
        )


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # the model's own stop token (which is then the last id of the answer)
    STOP_STRING = "stop_string"  # one of `SamplingParams.stop_strings`
    LENGTH = "length"  # max_new_tokens
    CONTEXT = "context"  # the context limit
    ABORTED = "aborted"  # somebody pressed stop
    FAILED = "failed"  # an error; see `Finished.error`
    READ = "read"  # a `ReadRequest`: all of it is in the KV
    PREEMPTED = "preempted"  # idle work made way for a request


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """`fed_tokens` of the `total_tokens` of this turn have been read."""

    fed_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """One sampled token. `text` is what became displayable with it: "" while a character is incomplete or a stop
    string might be starting. A stop token has `text == ""`. `logprobs` only where they were asked for."""

    token_id: int
    text: str
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every request. Times in seconds; `ttft_s` is None when no token was sampled.

    `text_tail` is text that was held back and belongs to the answer; what begins a stop string is never sent before.
    `fed_tokens` were computed in this turn before the first sampled token, `reused_tokens` came from the KV.
    `accepted_tokens` of `drafted_tokens` that prompt lookup guessed were what the model said.
    """

    reason: FinishReason
    fed_tokens: int
    reused_tokens: int
    sampled_tokens: int
    ttft_s: float | None
    prefill_s: float
    decode_s: float
    text_tail: str = ""
    error: str | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0


Event = PrefillProgress | TokenDelta | Finished
Listener = Callable[[Event], None]


class KV(Protocol):
    """Keys and values of a prefix of one ledger. Any thread may read these; only the engine changes them."""

    @property
    def length_tokens(self) -> int:
        """Tokens it holds now."""

    @property
    def allocated_bytes(self) -> int:
        """Bytes of memory it holds now, empty room included."""


class Segment(Protocol):
    """A run of KV rows in host memory, never changed again."""

    @property
    def identity(self) -> SegmentIdentity: ...

    @property
    def data_bytes(self) -> int:
        """Bytes of its rows."""


class Generation(Protocol):
    """A submitted request."""

    def abort(self) -> None:
        """Stops it within one decode step or prefill chunk; returns at once. May be called from any thread."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Everything in `ledger` that `kv` does not already hold is fed, then tokens are sampled.

    `kv` is cropped to the longest common prefix with `ledger[:-1]` first, so that a stale KV can never leak into an
    answer. `answer_prefix_tokens` is how many of the last ledger ids are the beginning of this very answer (an answer
    that is continued); they count for incremental de-tokenisation, not for `max_new_tokens`. With `is_idle` it has the
    priority of a `ReadRequest`. Prompts of different `fairness_key`s are read in turns.
    """

    ledger: tuple[int, ...]
    kv: KV
    sampling: SamplingParams
    answer_prefix_tokens: int = 0
    is_idle: bool = False
    fairness_key: str = ""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """`ledger` is read into `kv` and nothing is sampled. `kv` is cropped to the longest common prefix first.

    Idle priority: it runs only while there is no request, and one that arrives ends it between two layers
    (`FinishReason.PREEMPTED`; what was read so far stays in the KV). Where a request is at work already it ends at
    once, with the KV as it was.
    """

    ledger: tuple[int, ...]
    kv: KV


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a person may know about the loaded model. `fingerprint` names everything that makes a KV valid: weights,
    quantization, dtype, RoPE settings. `tokenizer_fingerprint` names what makes token ids valid (vocabulary and chat
    template)."""

    name: str  # "SmolLM2-135M-Instruct"
    quantization: str  # "4-bit (Q4_1 as shipped)"
    kernel: str  # "SDPA flash (CPU)"
    device: str  # "cpu", "cuda:0"
    context_limit_tokens: int
    kv_bytes_per_token: int
    weights_bytes: int
    fingerprint: str
    tokenizer_fingerprint: str
    default_sampling: SamplingParams
    notes: tuple[str, ...] = ()  # sentences: what was chosen or degraded at load
    cold_drift: ColdDrift | None = None  # None: what leaves the device comes back exactly


@dataclass(frozen=True, slots=True)
class Pulse:
    """How the engine's thread is doing: whether it lives, and for how long it has been at its present step or call,
    which was expected to take `expected_s`."""

    is_alive: bool
    busy_s: float
    expected_s: float


class Engine(Protocol):
    """What `sessions` needs of the engine. `tests` has a scripted twin."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def max_concurrent(self) -> int:
        """Generations that may be submitted at the same time; admission beyond it is the caller's queue."""

    on_memory_pressure: Callable[[], Sequence[KV]]
    """Set by the owner of the KVs. Called on the engine thread when the device refused memory: KVs that nobody uses,
    for the engine to free at once."""

    def pulse(self) -> Pulse:
        """How its thread is doing. Any thread, at any time."""

    def rebuild(self) -> None:
        """Gives the thread up, whatever it hangs in, and goes on with a new one on the same model. All that it was at
        ends as FAILED, its late results reach nobody, and the KVs so far are refused. Raises `ModelRuntimeError` when
        that cannot be done; then every request fails. Not from the engine thread."""

    def new_kv(self) -> KV:
        """An empty KV that holds no bytes yet."""

    def kv_bytes(self, tokens: int) -> int:
        """An upper bound of the bytes a KV of up to `tokens` tokens holds at any moment, growing included."""

    def submit(self, request: GenerationRequest, listener: Listener) -> Generation:
        """Queues a generation. `listener` is called on the engine thread and must not block; `Finished` is always
        the last event, also on errors and after `close`. The KV belongs to the engine until then."""

    def read(self, request: ReadRequest, listener: Listener) -> Generation:
        """Queues idle reading; events as for `submit`, `TokenDelta` excepted."""

    def release(self, kv: KV) -> None:
        """Frees the KV's memory; `allocated_bytes` is 0 when this returns. Not for a KV with a running generation."""

    def stage(self, kv: KV, identity: SegmentIdentity, before: Sequence[int] | None = None) -> Segment:
        """A copy of the KV's rows `identity.start_tokens..end_tokens`, made between two steps. Raises `ValueError` when
        the KV no longer holds these tokens there (it was cropped or dropped meanwhile), `EngineClosed` after `close`.
        `before` are the ids that must still stand in front of them: rows depend on those as much as on their own, and
        without it the caller must know that nobody changed the KV. Not from the engine thread."""

    def stage_run(
        self, kv: KV, identities: Sequence[SegmentIdentity], before: Sequence[int] | None = None
    ) -> list[Segment]:
        """`stage` for segments that follow one another, all of them between the same two steps: a wait for one step,
        however many they are. `before` stands in front of the first."""

    def restore(self, kv: KV, segments: Sequence[Segment], room_tokens: int = 0) -> float:
        """Appends segments that follow one another to a KV that ends where the first begins, all between the same two
        steps, with room for `room_tokens` tokens in the end. Returns the seconds that this took, without the wait for
        the step before. Raises `ValueError`, `DeviceOutOfMemory` or `EngineClosed`; the KV then holds a whole prefix.
        Not for a KV with a running generation, and not from the engine thread."""

    def join(self, identity: SegmentIdentity, segments: Sequence[Segment]) -> Segment | None:
        """Segments that follow one another as one, under the name it has then. Any thread. None where joined rows would
        not be the very same (int8, whose scales belong to the cut)."""

    def copy_beginning(self, source: KV, target: KV, ids: Sequence[int], least_tokens: int) -> tuple[int, int]:
        """Copies rows from one KV into another on the device, between steps, so that `target` holds of `ids` what
        `source` does, if that is at least `least_tokens` more than it has of them. Returns from where to where, (0, 0)
        for none. `source` may have a running generation, `target` not. Raises `DeviceOutOfMemory` or `EngineClosed`."""

    def save(self, segment: Segment, path: Path) -> int:
        """Writes the file so that it is whole or absent; returns its bytes. Any thread. Raises `SnapshotNotSaved`."""

    def load(self, identity: SegmentIdentity, path: Path) -> Segment:
        """The segment in the file, verified. Any thread. Raises `SnapshotRefused` with the reason."""

    def verify(
        self,
        scratch: KV,
        ledger: Sequence[int],
        copies: Sequence[KV | Iterable[Segment]],
        must_stop: Callable[[], bool],
    ) -> Verification | None:
        """Reads `ledger` (the rows of all but its last id) into `scratch`, an empty KV that may grow to its length, and
        compares every copy with it; of the last one the logits too. A copy is a KV without a running generation, or
        segments that follow one another from position 0; what holds other ids counts up to there. Works in pieces
        no longer than a prefill chunk beside running answers, and not at all while another prompt is read. None when
        `must_stop` said so. Raises `DeviceOutOfMemory` or `EngineClosed`. Not from the engine thread."""

    def segment_bytes(self, tokens: int) -> int:
        """Bytes of the rows of so many tokens."""

    def estimate_read_s(self, start_tokens: int, end_tokens: int) -> float:
        """Expected seconds to feed positions `start_tokens..end_tokens`, from speeds measured on this machine."""

    def close(self) -> None:
        """Ends every generation (ABORTED), stops the thread, frees the memory. May be called twice."""
