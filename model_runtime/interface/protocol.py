"""The engine as the rest of the program sees it: what is asked of it, and what it answers. Imports no torch, so that
`sessions` may import it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model_runtime.interface.drift import Int8Drift
from model_runtime.interface.events import Listener
from model_runtime.interface.findings import Verification
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import SegmentIdentity


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
    int8_drift: Int8Drift | None = None  # None: what leaves the device comes back exactly


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

    def give_memory_back_with(self, idle_kvs: Callable[[], Sequence[KV]]) -> None:
        """For the owner of the KVs, before the first request. `idle_kvs` is called on the engine thread when the device
        refused memory and returns KVs that no request uses, for the engine to free at once."""

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
        """Writes the file so that it is whole or absent; returns its bytes. Any thread. Raises `SegmentNotSaved`."""

    def load(self, identity: SegmentIdentity, path: Path) -> Segment:
        """The segment in the file, verified. Any thread. Raises `SegmentRefused` with the reason."""

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
