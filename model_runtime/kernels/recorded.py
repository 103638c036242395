"""Decode steps recorded once and replayed: a CUDA graph for each of a few batch sizes and key lengths.

Launching some thousand small kernels from Python takes longer than an H100 needs to run them. A graph launches them
all at once, on fixed addresses: so a step is padded to the next batch size, its numbers are copied into the buffer the
graph reads, and the longest key length only bounds how far the kernel splits (the true lengths are read on the device).

On a CPU a replay runs the same function on the same fixed buffer: all but the graph itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model_runtime.kernels.arena import Arena
from model_runtime.kernels.step_inputs import StepRows, StepTensors, StepUpload, padded

logger = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SHORTEST_KEYS = 128
_WARM_UPS = 2  # cuBLAS and lazily built kernels allocate at their first runs, which must not be recorded

Step = Callable[[StepTensors], torch.Tensor]


@dataclass(slots=True)
class _Recording:
    upload: StepUpload
    replay: Callable[[], torch.Tensor]


class RecordedDecode:
    """Engine thread only. `step` computes float32 logits `(batch, vocabulary)` without waiting for the device."""

    def __init__(self, step: Step, arena: Arena) -> None:
        self._step = step
        self._arena = arena
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle() if arena.geometry.device.type == "cuda" else None
        self.refusal: str | None = None  # why steps are no longer recorded

    @property
    def recordings(self) -> int:
        """How many pairs of batch size and key length were recorded."""
        return len(self._recordings)

    def fits(self, rows: StepRows) -> bool:
        """Whether this decode step can be replayed."""
        return self.refusal is None and len(rows.token_ids) <= BATCHES[-1]

    def knows(self, rows: StepRows) -> bool:
        """Whether this decode step is recorded already."""
        return self.fits(rows) and _bounds(rows) in self._recordings

    def run(self, rows: StepRows, token_ids: torch.Tensor | None = None) -> torch.Tensor:
        """The step's logits `(sequences, vocabulary)`, in memory that the next replay overwrites. `token_ids
        (sequences)` on the device take the place of those in `rows`, where the host does not know them yet."""
        batch, max_k = _bounds(rows)
        whole = padded(rows, batch, max_k, self._arena.nobodys_row)
        recording = self._recordings.get((batch, max_k))
        if recording is None:
            upload = StepUpload(self._arena.geometry.device, len(whole.numbers))
            upload.send(whole)
            recording = self._recordings[(batch, max_k)] = _Recording(upload, self._record(upload, batch, max_k))
        else:
            recording.upload.send(whole)
        if token_ids is not None:
            recording.upload.buffer[: len(token_ids)].copy_(token_ids)
        return recording.replay()[: len(rows.token_ids)]

    def _record(self, upload: StepUpload, batch: int, max_k: int) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            return self._step(upload.tensors(batch, 0, batch, 1, max_k))

        if self._pool is None:
            return step
        try:
            return self._capture(step)
        except RuntimeError as error:
            self.refusal = str(error).splitlines()[0]
            logger.warning("decode steps are not recorded: %s", self.refusal)
            torch.cuda.synchronize()
            return step

    def _capture(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs: warm up on a side stream, then record."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads may allocate and copy meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


def _bounds(rows: StepRows) -> tuple[int, int]:
    """The batch size and the longest keys of the recording that this step is part of."""
    batch = next(size for size in BATCHES if size >= len(rows.token_ids))
    return batch, max(SHORTEST_KEYS, 1 << (rows.max_k - 1).bit_length())
