"""The engine as the rest of the program sees it: requests, KVs, segments and the engine's methods. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from model_runtime.interface.events import Listener
from model_runtime.interface.findings import Int8Drift, Verification
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import SegmentIdentity


class KV(Protocol):
    """Keys and values of a prefix of one ledger. Any thread may read these numbers; only the engine changes them."""

    @property
    def length_tokens(self) -> int:
        """How many tokens it holds now."""

    @property
    def allocated_bytes(self) -> int:
        """How many bytes of memory it holds now, unused capacity included."""

    @property
    def is_long_rope(self) -> bool:
        """Whether its rows have the long frequencies of long RoPE."""


class Segment(Protocol):
    """An immutable run of KV rows in host memory."""

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
    """Feeds what `kv` does not hold of `ledger` yet, then samples tokens.

    `kv` is first cropped to its longest common prefix with `ledger[:-1]`, so that stale rows never reach an answer.
    Rows with the rotary frequencies of another length are dropped, also when the answer itself passes that length.
    `answer_prefix_tokens` is how many of the last ledger ids already belong to this answer (when an answer is
    continued); they count for incremental de-tokenisation, not for `max_new_tokens`. With `is_idle` the request has the
    priority of a `ReadRequest`. Prompts with different `fairness_key`s are read in turns.
    """

    ledger: tuple[int, ...]
    kv: KV
    sampling: SamplingParams
    answer_prefix_tokens: int = 0
    is_idle: bool = False
    fairness_key: str = ""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Reads `ledger` into `kv` and samples nothing. `kv` is first cropped to the longest common prefix. It is read as
    the beginning of a ledger of `whole_tokens` tokens: long RoPE chooses the frequencies by that length.

    Idle priority: it runs only while no generation is running, and an arriving generation ends it between two layers
    (`FinishReason.PREEMPTED`; what was read so far stays in the KV). If a generation is already running, it ends at
    once and leaves the KV unchanged.
    """

    ledger: tuple[int, ...]
    kv: KV
    whole_tokens: int = 0  # at least the length of `ledger`; 0: that is all there will be


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts about the loaded model. `fingerprint` identifies everything that a KV's validity depends on: weights,
    quantization, dtype, RoPE settings. `tokenizer_fingerprint` identifies what token ids depend on: the vocabulary and
    the chat template."""

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
    int8_drift: Int8Drift | None = None  # None: saved rows are restored exactly
    short_rope_tokens: int | None = None  # the longest ledger with long RoPE's short frequencies; None: only one set

    def is_long_rope(self, ledger_tokens: int) -> bool:
        """Whether a ledger of this length is read with the long frequencies of long RoPE."""
        return self.short_rope_tokens is not None and ledger_tokens > self.short_rope_tokens


@dataclass(frozen=True, slots=True)
class Pulse:
    """The state of the engine thread: whether it is alive, and for how long it has been busy with its current step or
    call, which was expected to take `expected_s`."""

    is_alive: bool
    busy_s: float
    expected_s: float


class Engine(Protocol):
    """What `sessions` needs from the engine. The tests have a scripted implementation."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def max_concurrent(self) -> int:
        """How many generations may be submitted at the same time. The caller queues any more."""

    def give_memory_back_with(self, idle_kvs: Callable[[], Sequence[KV]]) -> None:
        """For the owner of the KVs, before the first request. `idle_kvs` is called on the engine thread when the device
        refused memory and returns KVs that no request uses, for the engine to free at once."""

    def pulse(self) -> Pulse:
        """The state of its thread. Any thread, at any time."""

    def rebuild(self) -> None:
        """Abandons the engine thread, even if it hangs, and continues with a new one on the same model. All its work
        ends as FAILED, its late results are dropped, and existing KVs are refused. Raises `ModelRuntimeError` when the
        rebuild fails; then every request fails. Not from the engine thread."""

    def new_kv(self) -> KV:
        """An empty KV that holds no bytes yet."""

    def kv_bytes(self, tokens: int) -> int:
        """An upper bound on the bytes that a KV of up to `tokens` tokens holds at any moment, also while it grows."""

    def submit(self, request: GenerationRequest, listener: Listener) -> Generation:
        """Queues a generation. `listener` is called on the engine thread and must not block. `Finished` is always the
        last event, also after an error and after `close`. The KV belongs to the engine until then."""

    def read(self, request: ReadRequest, listener: Listener) -> Generation:
        """Queues idle reading. Events are those of `submit` except `TokenDelta`."""

    def release(self, kv: KV) -> None:
        """Frees the KV's memory; `allocated_bytes` is 0 when this returns. Not for a KV with a running generation."""

    def stage(self, kv: KV, identity: SegmentIdentity, before: Sequence[int] | None = None) -> Segment:
        """Copies the KV's rows `identity.start_tokens..end_tokens` between two steps. Raises `ValueError` when the KV
        no longer holds these tokens there (it was cropped or dropped meanwhile), `EngineClosed` after `close`. `before`
        are the ids that must still precede them, because rows depend on all earlier ids; without it, the caller must
        know that the KV has not changed. Not from the engine thread."""

    def stage_run(
        self, kv: KV, identities: Sequence[SegmentIdentity], before: Sequence[int] | None = None
    ) -> list[Segment]:
        """`stage` for consecutive segments, all between the same two steps, so that any number of them waits for one
        step only. `before` precedes the first segment."""

    def restore(self, kv: KV, segments: Sequence[Segment], room_tokens: int = 0) -> float:
        """Appends consecutive segments to a KV that ends where the first begins, all between the same two steps, and
        leaves it with capacity for at least `room_tokens` tokens. Returns the seconds this took, without the wait for
        the running step. Raises `ValueError`, `DeviceOutOfMemory` or `EngineClosed`; the KV then still holds a valid
        prefix. Not for a KV with a running generation, and not from the engine thread."""

    def join(self, identity: SegmentIdentity, segments: Sequence[Segment]) -> Segment | None:
        """Joins consecutive segments into one with the given identity. Any thread. None when the joined rows would not
        be identical (int8, whose scales depend on where segments are cut)."""

    def copy_beginning(self, source: KV, target: KV, ids: Sequence[int], least_tokens: int) -> tuple[int, int]:
        """Copies rows from one KV into another on the device, between steps, so that `target` holds as long a prefix of
        `ids` as `source` does, if that is at least `least_tokens` more than it holds already; rows of other rotary
        frequencies than those of `source` do not count. Returns the copied range
        (start, end), or (0, 0) if nothing was copied. `source` may have a running generation, `target` must not. Raises
        `DeviceOutOfMemory` or `EngineClosed`."""

    def save(self, segment: Segment, path: Path) -> int:
        """Writes the file atomically and returns its size in bytes. Any thread. Raises `SegmentNotSaved`."""

    def load(self, identity: SegmentIdentity, path: Path) -> Segment:
        """Reads and verifies the segment in the file. Any thread. Raises `SegmentRefused` with the reason."""

    def verify(
        self,
        scratch: KV,
        ledger: Sequence[int],
        copies: Sequence[KV | Iterable[Segment]],
        must_stop: Callable[[], bool],
        is_long_rope: bool = False,
    ) -> Verification | None:
        """Reads `ledger` (all but its last id) into `scratch`, an empty KV that may grow to that length, and compares
        every copy with it, the last one by its logits too. A copy is a KV without a running generation, or consecutive
        segments from position 0; it is compared up to its first id that differs from the ledger. Works between the
        steps of running answers, in pieces no longer than a prefill chunk, and pauses while another prompt is read.
        With `is_long_rope` it reads with the long frequencies of long RoPE, which the copies must have too.
        Returns None when `must_stop` returned true. Raises `DeviceOutOfMemory` or `EngineClosed`. Not from the engine
        thread."""

    def segment_bytes(self, tokens: int) -> int:
        """How many bytes the saved rows of `tokens` tokens take."""

    def estimate_read_s(self, start_tokens: int, end_tokens: int) -> float:
        """Expected seconds to feed positions `start_tokens..end_tokens`, from speeds measured on this machine."""

    def close(self) -> None:
        """Ends every generation as ABORTED, stops the thread and frees the memory. May be called twice."""
