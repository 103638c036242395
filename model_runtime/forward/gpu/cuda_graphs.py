"""Records steps once and replays them: a CUDA graph for each of a few shapes.

Launching about a thousand small kernels from Python takes longer than an H100 needs to run them. A graph launches them
all at once, on fixed addresses: a step is padded to a recorded shape, its numbers are copied into the buffer that the
graph reads, and the longest key length only bounds how far the kernel splits (the true lengths are read on the device).

On a CPU a replay runs the same function on the same fixed buffer: everything but the graph itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from model_runtime.forward.arena.arena import Arena
from model_runtime.forward.arena.step_inputs import StepRows, StepTensors, StepUpload
from model_runtime.forward.gpu.graph_shapes import StepShape, padding_step

logger = logging.getLogger(__name__)

_WARM_UPS = 2  # cuBLAS and lazily built kernels allocate in their first runs, which must not be recorded

Step = Callable[[StepTensors], torch.Tensor]


@dataclass(slots=True)
class _Recording:
    upload: StepUpload
    replay: Callable[[], torch.Tensor]


class RecordedSteps:
    """Recordings by shape. Engine thread only. `step` computes float32 logits `(logit rows, vocabulary)` and does not
    wait for the device. `what` names the steps in logs, in the plural."""

    def __init__(self, step: Step, arena: Arena, what: str) -> None:
        self._step = step
        self._arena = arena
        self.what = what
        self._recordings: dict[StepShape, _Recording] = {}
        self._waiting: set[StepShape] = set()
        self._pool = torch.cuda.graph_pool_handle() if arena.geometry.device.type == "cuda" else None
        self.refusal: str | None = None  # why recording was stopped

    @property
    def recordings(self) -> int:
        """How many shapes are recorded."""
        return len(self._recordings)

    def knows(self, shape: StepShape) -> bool:
        """Whether steps of this shape are recorded."""
        return self.refusal is None and shape in self._recordings

    def is_ready(self, shape: StepShape) -> bool:
        """Whether this step can be replayed. An unknown shape is recorded at once if such steps repeat, because that
        soon pays off. Others are queued for `record_waiting`."""
        if self.refusal is None and shape not in self._recordings:
            if shape.repeats:
                self._record(shape)
            else:
                self._waiting.add(shape)
        return self.knows(shape)

    def record_waiting(self, must_stop: Callable[[], bool]) -> None:
        """Records the queued shapes."""
        while self._waiting and self.refusal is None and not must_stop():
            self._record(self._waiting.pop())

    def _record(self, shape: StepShape) -> None:
        """Runs the step a few times on padding rows, and records it."""
        like = padding_step(shape, self._arena.padding_row)
        try:
            upload = StepUpload(self._arena.geometry.device, len(like.numbers))
            upload.send(like)

            def step() -> torch.Tensor:
                return self._step(upload.tensors(like))

            self._recordings[shape] = _Recording(upload, step if self._pool is None else self._capture(step))
        except RuntimeError as error:
            self.refusal = str(error).splitlines()[0]
            logger.warning("%s are not recorded: %s", self.what, self.refusal)
            if self._pool is not None:
                torch.cuda.synchronize()

    def run(self, shape: StepShape, rows: StepRows, token_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Replays a recorded shape and returns the step's logits `(logit rows, vocabulary)`, in memory that the next
        replay overwrites. `token_ids (sequences)` on the device replace those in `rows`, for ids that the host does not
        know yet."""
        recording = self._recordings[shape]
        recording.upload.send(shape.padded(rows, self._arena.padding_row))
        if token_ids is not None:
            recording.upload.buffer[: len(token_ids)].copy_(token_ids)
        return recording.replay()[shape.own_logits(len(rows.logit_rows))]

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
