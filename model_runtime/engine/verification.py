"""Verifies stored rows against a re-read of the ledger: row by row, and by the logits they lead to.

Rows are compared as `|stored - read| / rms(read)` per layer: 0 with our own CPU kernels, 1e-5 with torch's in float32,
up to 0.18 when torch's packed 4-bit decode is mixed with de-quantised prefill (measured over 1,000 tokens of the
embedded model), up to 0.8 with bfloat16 activations (decision 0012), and above 2 for another token's rows and for most
flipped high bits; and by the root mean square over a row, which is 1 if the row is missing. Logits are compared at
positions spread over the whole conversation: one token is fed after the read rows, and the same token after the stored
ones, through the same kernel, so that only the rows can differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from model_runtime.engine.out_of_memory import translated
from model_runtime.forward.cpu_activations import has_integer_activations
from model_runtime.forward.native_forward import runs_natively
from model_runtime.forward.runtime import Forward
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface import protocol
from model_runtime.interface.config import SavedKvDtype
from model_runtime.interface.findings import Comparison, Verification
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.segment import KVSegment, own_segment, rows_of
from model_runtime.kv.slab import KVSlab

PROBES = 16  # positions whose logits are compared
CHUNK_TOKENS = 256  # read or compared at once
REST_S = 0.02  # before a piece that gave way is tried again
Piece = Callable[[int], None]  # its argument is how many tokens it may read


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The largest differences that count as equal. `element`: the largest difference in a row; `row`: the root mean
    square of a row's differences; both in units of the layer's root mean square. `logit` in logits; `nll` in nats,
    averaged over the probes."""

    element: float
    row: float
    logit: float
    nll: float


EXACT = Tolerance(element=1e-3, row=1e-3, logit=1e-3, nll=1e-4)
ROUNDED = Tolerance(element=0.6, row=0.4, logit=1.0, nll=0.05)
HALF = Tolerance(element=2.0, row=0.4, logit=2.5, nll=0.15)
_ROUNDED_DTYPES = {torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int32}


def tolerance_of(model: PreTrainedModel, kv_dtype: torch.dtype, cold_kv_dtype: SavedKvDtype) -> Tolerance:
    """How much undamaged rows may differ. `kv_dtype` is that of the model's own layers. `EXACT` for our own kernels,
    whose results do not depend on how a read is cut, and for float32 throughout; `HALF` when every activation is
    rounded to 16 bits; `ROUNDED` when weights or activations are rounded, or rows were saved at 8 bits."""
    if kv_dtype in (torch.float16, torch.bfloat16):
        return HALF
    if cold_kv_dtype == "int8":
        return ROUNDED
    if runs_natively(model):
        return EXACT
    if has_integer_activations(model):
        return ROUNDED
    stored = {tensor.dtype for tensor in (*model.parameters(), *model.buffers())}
    return ROUNDED if stored & _ROUNDED_DTYPES else EXACT


class Reread:
    """One verification. `scratch` is an empty slab that only it uses; it ends up holding the stored rows. Its methods
    run on the engine thread and take at most one forward each. After `StepAborted` (see `abort_if`) nothing has
    changed and the method may be called again."""

    def __init__(
        self,
        forward: Forward,
        scratch: KVSlab,
        ledger: Sequence[int],
        tolerance: Tolerance,
        abort_if: Callable[[], bool] = lambda: False,
    ) -> None:
        self.ledger = list(ledger)
        self._forward = forward
        self._scratch = scratch
        self._tolerance = tolerance
        self._abort_if = abort_if
        room_tokens = scratch.short_room_tokens
        last = len(self.ledger) - 1 if room_tokens is None else min(len(self.ledger), room_tokens) - 1
        self._probes = sorted({last * number // PROBES for number in range(1, PROBES + 1)} - {0})
        self._read_logits: dict[int, torch.Tensor] = {}
        self._logit_difference = 0.0
        self._nlls: list[tuple[float, float]] = []
        self._copies: list[Comparison] = []

    @property
    def is_read(self) -> bool:
        return len(self._read_logits) == len(self._probes)

    @property
    def is_probed(self) -> bool:
        return not self._probes

    def read(self, limit_tokens: int) -> None:
        """Continues reading, up to the next probe, which is a forward of its own."""
        start = self._scratch.length_tokens
        if not start:
            self._scratch.reserve(len(self.ledger))
        probe = self._probes[len(self._read_logits)]
        if start < probe:
            end = min(probe, start + limit_tokens)
            self._forward.run([Feed(self._scratch, self.ledger[start:end], 0)], self._abort_if)
        else:
            self._read_logits[probe] = self._feed(probe)

    def begin_copy(self) -> None:
        """Starts a new copy: later comparisons belong to it."""
        self._copies.append(Comparison(0, 0.0, None))

    @torch.inference_mode()
    def compare(self, kept: Iterable[torch.Tensor], start: int, tokens: int, adopts: bool) -> None:
        """Compares `kept`, every layer's keys and values `(kv_heads, tokens or more, dim)` from position `start` on,
        with the rows that were read. `adopts` then overwrites the read rows with them."""
        before = self._copies[-1]
        largest, first_bad = before.largest_difference, before.first_bad_token
        ours = (t[:, start : start + tokens] for t in _layers(self._scratch))
        for read, rows in zip(ours, kept, strict=True):
            rows = rows[:, :tokens].to(read.device)
            rms = read.float().square().mean().sqrt().clamp_min(1e-12)
            difference = (rows.float() - read.float()).abs() / rms
            largest_of_row, of_row = difference.amax(dim=(0, 2)), difference.square().mean(dim=(0, 2)).sqrt()
            # Negated, so that NaN counts as bad.
            bad = ~((largest_of_row <= self._tolerance.element) & (of_row <= self._tolerance.row))
            if bool(bad.any()):
                position = start + int(bad.int().argmax())
                first_bad = position if first_bad is None else min(position, first_bad)
            largest = max(largest, float(largest_of_row.nan_to_num(torch.inf).max()))
            if adopts:
                read.copy_(rows)
        self._copies[-1] = Comparison(before.tokens + tokens, largest, first_bad)

    def probe(self, limit_tokens: int) -> None:
        """Compares the logits at one position after the adopted rows; from the last position to the first, because each
        probe overwrites its own row."""
        position = self._probes[-1]
        self._scratch.crop(position)
        read, kept = self._read_logits[position], self._feed(position)
        del self._probes[-1]
        difference = (read - kept).abs().nan_to_num(torch.inf)
        self._logit_difference = max(self._logit_difference, float(difference.max()))
        if position + 1 < len(self.ledger):
            target = self.ledger[position + 1]
            self._nlls.append((_nll(read, target), _nll(kept, target)))

    def verdict(self) -> Verification:
        """The result, once everything was compared."""
        gap = sum(kept - read for read, kept in self._nlls) / max(1, len(self._nlls))
        logits_agree = self._logit_difference <= self._tolerance.logit and abs(gap) <= self._tolerance.nll
        return Verification(len(self.ledger) - 1, self._logit_difference, gap, tuple(self._copies), logits_agree)

    def _feed(self, position: int) -> torch.Tensor:
        return self._forward.run([Feed(self._scratch, [self.ledger[position]], 1)], self._abort_if)[0]


def compare_all(
    reread: Reread,
    geometry: KVGeometry,
    copies: Sequence[protocol.KV | Iterable[protocol.Segment]],
    in_passing: Callable[[Piece], bool],
    must_stop: Callable[[], bool],
) -> Verification | None:
    """Runs a whole verification. Not on the engine thread: `in_passing` runs one piece there and returns False if it
    gave way. None when `must_stop` returned true."""
    try:
        for piece in _pieces(reread, geometry, copies):
            while not must_stop() and not in_passing(piece):
                time.sleep(REST_S)
            if must_stop():
                return None
    except (torch.OutOfMemoryError, RuntimeError) as error:
        raise translated(error) from error
    return reread.verdict()


def _pieces(
    reread: Reread, geometry: KVGeometry, copies: Sequence[protocol.KV | Iterable[protocol.Segment]]
) -> Iterator[Piece]:
    """The work of a verification in pieces, each to be run on the engine thread before the next one is requested.
    Fetching a copy (from a file) happens here. The last copy's rows are adopted and probed."""
    while not reread.is_read:
        yield reread.read
    for copy in copies:
        yield lambda limit_tokens: reread.begin_copy()
        adopts = copy is copies[-1]
        if isinstance(copy, KVSlab):
            held_tokens = copy.common_prefix_tokens(reread.ledger[:-1])
            for start in range(0, held_tokens, CHUNK_TOKENS):
                tokens = min(CHUNK_TOKENS, held_tokens - start)
                yield partial(_compare_slab, reread, copy, start, tokens, adopts)
        elif isinstance(copy, Iterable):
            for segment in copy:
                yield partial(_compare_segment, reread, own_segment(segment), geometry, adopts)
    while copies and not reread.is_probed:
        yield reread.probe


def _compare_slab(reread: Reread, slab: KVSlab, start: int, tokens: int, adopts: bool, limit_tokens: int) -> None:
    reread.compare((t[:, start : start + tokens] for t in _layers(slab)), start, tokens, adopts)


def _compare_segment(reread: Reread, segment: KVSegment, geometry: KVGeometry, adopts: bool, limit_tokens: int) -> None:
    identity = segment.identity
    ledger = reread.ledger[identity.start_tokens : len(reread.ledger) - 1]
    pairs = zip(identity.token_ids, ledger, strict=False)
    tokens = next(
        (i for i, (kept, read) in enumerate(pairs) if kept != read), min(len(identity.token_ids), len(ledger))
    )
    if tokens:
        reread.compare(rows_of(segment, geometry), identity.start_tokens, tokens, adopts)


def _layers(slab: KVSlab) -> Iterator[torch.Tensor]:
    """Keys and values in the order of a segment's tensors."""
    for keys, values in zip(slab.keys, slab.values, strict=True):
        yield keys
        yield values


def _nll(logits: torch.Tensor, target: int) -> float:
    return float(logits.logsumexp(-1) - logits[target])
