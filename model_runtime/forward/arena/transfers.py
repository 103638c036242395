"""Copies rows between an arena and host memory on streams of their own, in parallel with compute.

Out: rows are gathered one layer at a time into the segment's layout on the device and copied from there in one piece,
because many small copies would not saturate the bus. In: each layer's rows are copied in one piece and scattered, and a
forward waits at each layer for that layer only, so that the first layers compute while later ones arrive.

The order is kept without blocking the host: a copy starts after all earlier work of the compute stream, and the compute
stream waits for running copies before rows are dropped, freed or moved. On a CPU there are no streams and every copy is
complete when it returns; everything else is the same.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from model_runtime.forward.arena.arena import Arena, ArenaKV
from model_runtime.forward.arena.host_pool import HostPool
from model_runtime.interface.segments import SegmentIdentity
from model_runtime.kv.segment import KVSegment, check_holds, data_bytes_for, layer_views, take_rope_of
from model_runtime.kv.slab import KVSlab


class _Lane:
    """One copy stream; does nothing on a CPU."""

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]
        self.last: Any = None  # the event after the last copy

    def behind_compute(self) -> contextlib.AbstractContextManager[object]:
        """A context in which work goes to this stream, after all work of the compute stream so far."""
        if self._stream is None:
            return contextlib.nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return torch.cuda.stream(self._stream)

    def mark(self) -> Any:
        """An event after the work so far; None on a CPU."""
        self.last = None if self._stream is None else self._stream.record_event()
        return self.last


class ArenaTransfers:
    """Engine thread only, except for the functions that `begin_out` returns."""

    def __init__(self, arena: Arena, pool: HostPool) -> None:
        self._arena = arena
        self._geometry = arena.geometry
        self._pool = pool
        self._out, self._in = _Lane(self._geometry.device), _Lane(self._geometry.device)
        self._arriving: deque[tuple[Any, torch.Tensor]] = deque()  # host memory that copies still read
        arena.before_rows_change = self.compute_waits

    def begin_out(
        self, kv: KVSlab, identity: SegmentIdentity, before: Sequence[int] | None = None
    ) -> Callable[[], KVSegment]:
        """Starts to copy these rows out. The returned function waits for them, on any thread. Raises `ValueError` when
        the KV holds other tokens there, or when other tokens than `before` precede them."""
        check_holds(kv, identity, before)
        tokens = len(identity.token_ids)
        data = self._pool.take(data_bytes_for(self._geometry, tokens))
        rows = slice(identity.start_tokens, identity.end_tokens)
        with self._out.behind_compute():
            self._wait(self._in.last)
            for layer, (flat, keys, values) in enumerate(layer_views(data, self._geometry, tokens)):
                staged = torch.empty(flat.shape, dtype=flat.dtype, device=self._geometry.device)
                self._views(staged, keys.shape)[0].copy_(kv.keys[layer][:, rows])
                self._views(staged, keys.shape, values.shape)[1].copy_(kv.values[layer][:, rows])
                flat.copy_(staged, non_blocking=True)
            done = self._out.mark()

        def wait() -> KVSegment:
            if done is not None:
                done.synchronize()
            return KVSegment(identity, data)

        return wait

    def copy_in(self, kv: KVSlab, segment: KVSegment) -> None:
        """Starts to append a segment's rows to the KV, which must end where they begin. Raises `ValueError`, or
        `torch.OutOfMemoryError` when the arena is full."""
        assert isinstance(kv, ArenaKV)
        identity = segment.identity
        if kv.length_tokens != identity.start_tokens:
            raise ValueError("a segment must be appended where it begins")
        take_rope_of(kv, identity)
        kv.ensure_room(identity.end_tokens)
        rows = slice(identity.start_tokens, identity.end_tokens)
        events = []
        with self._in.behind_compute():
            self._wait(self._out.last)
            for layer, (flat, keys, values) in enumerate(
                layer_views(segment.data, self._geometry, len(identity.token_ids))
            ):
                staged = flat.to(self._geometry.device, non_blocking=True)
                kv.keys[layer][:, rows].copy_(self._views(staged, keys.shape)[0])
                kv.values[layer][:, rows].copy_(self._views(staged, keys.shape, values.shape)[1])
                events.append(self._in.mark())
        kv.arriving = events if events[-1] is not None else None
        self._arriving.append((events[-1], segment.data))
        while self._arriving and (self._arriving[0][0] is None or self._arriving[0][0].query()):
            self._arriving.popleft()
        kv.appended(identity.token_ids)

    def compute_waits(self) -> None:
        """Makes later work of the compute stream wait for all copies so far. The host does not wait."""
        for lane in (self._out, self._in):
            self._wait(lane.last)
            lane.last = None

    def _wait(self, event: Any) -> None:
        if event is not None:
            torch.cuda.current_stream(self._geometry.device).wait_event(event)

    def _views(self, flat: torch.Tensor, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
        """Consecutive views of these shapes into `flat`."""
        found, start = [], 0
        for shape in shapes:
            count = shape[0] * shape[1] * shape[2]
            found.append(flat[start : start + count].view(shape))
            start += count
        return found
