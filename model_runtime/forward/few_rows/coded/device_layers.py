"""Makes the layers of a model that keep the file's bits on a GPU, each one after it has proved correct there."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TypeVar

import torch

from model_runtime.forward.few_rows.coded.coded_embedding import CodedEmbedding
from model_runtime.forward.few_rows.coded.coded_linear import MOST_ROWS, CodedLinear
from model_runtime.forward.few_rows.coded.operations import CodedOperations, CudaCodedOperations
from model_runtime.forward.few_rows.coded.planes import planes_of
from model_runtime.forward.few_rows.nvrtc import NvrtcUnavailable
from model_runtime.weights.coded.coded_rows import Coded, Scales

logger = logging.getLogger(__name__)
_Made = TypeVar("_Made")

_CHECKED_ROWS = 64  # of the matrix, at either end
_TOKENS = (1, 13, MOST_ROWS, MOST_ROWS + 1)
# Of the norm. The products of both are in float32 and rounded once, but for more than MOST_ROWS rows, where the weights
# are rounded too: float32, bfloat16, float16.
_LARGEST_GAPS = {torch.float32: 1e-4, torch.bfloat16: 8e-3, torch.float16: 1e-3}


class DeviceLayers:
    """`why_not` says as a clause, by the name of a format, why layers of it run de-quantised; `made` counts those that
    do not."""

    def __init__(self, device: torch.device, dtype: torch.dtype, operations: CodedOperations) -> None:
        self._device, self._dtype, self._operations = device, dtype, operations
        self.why_not = dict[str, str]()
        self.made = 0

    def linear(
        self, name: str, matrix: Coded, bias: torch.Tensor | None, numbers: Callable[[int, int], torch.Tensor]
    ) -> CodedLinear | None:
        """The layer for a matrix of the format `name`; None, with the reason in `why_not`, if it must be de-quantised,
        as all later ones of that format then are. `numbers` gives rows `start..end` of the same matrix by other means,
        `[end - start, K]`. Raises `torch.OutOfMemoryError`."""

        def made() -> CodedLinear | None:
            of_device = None if bias is None else bias.float().to(self._device)
            layer = CodedLinear(planes_of(matrix, self._device), of_device, self._operations)
            return layer if self._agrees(layer, numbers) else None

        return self._tried(name, made)

    def ends(
        self,
        name: str,
        matrix: Coded,
        numbers: Callable[[int, int], torch.Tensor],
        *,
        has_head: bool,
        factor: float | None,
    ) -> tuple[CodedEmbedding, CodedLinear | None] | None:
        """The embeddings, whose rows are multiplied by `factor`, and the head if it has the same matrix; None as for
        `linear`. `matrix` has its columns in order, and no nested scales."""

        def made() -> tuple[CodedEmbedding, CodedLinear | None] | None:
            planes = planes_of(matrix, self._device)
            if planes.order is not None or planes.grid.scales is Scales.NESTED:
                raise ValueError("rows cannot be looked up")
            head = CodedLinear(planes, None, self._operations) if has_head else None
            table = CodedEmbedding(planes, self._operations, self._dtype, is_shared=has_head, factor=factor)
            is_right = (head is None or self._agrees(head, numbers)) and self._looks_up(table, factor, numbers)
            return (table, head) if is_right else None

        return self._tried(name, made)

    def _tried(self, name: str, make: Callable[[], _Made | None]) -> _Made | None:
        """What `make` makes, if that is right; otherwise its format is noted, and not tried again."""
        if name in self.why_not:
            return None
        try:
            made = make()
            if made is not None:
                self.made += 1
                return made
            reason = "their products are wrong on this device"
        except torch.OutOfMemoryError:
            raise
        except (NvrtcUnavailable, RuntimeError, ValueError, LookupError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("weights of %s run de-quantised, not in our own kernels: %s", name, reason)
        self.why_not[name] = reason
        return None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about what runs de-quantised."""
        return tuple(
            f"Weights of {name} run de-quantised: our own kernels cannot run them here ({reason})."
            for name, reason in sorted(self.why_not.items())
        )

    @torch.inference_mode()
    def _agrees(self, layer: CodedLinear, numbers: Callable[[int, int], torch.Tensor]) -> bool:
        """Whether products of few rows and of many with the first and the last rows are what `numbers` says."""
        rows, limit = layer.out_features, _LARGEST_GAPS[self._dtype]
        generator = torch.Generator().manual_seed(7)
        for start in sorted({0, max(0, rows - _CHECKED_ROWS)}):
            end = min(start + _CHECKED_ROWS, rows)
            weights = numbers(start, end).float().to(self._device)
            for tokens in _TOKENS:
                x = torch.randn((tokens, layer.in_features), generator=generator).to(self._device, self._dtype)
                expected = x.float() @ weights.t()
                if layer.bias is not None:
                    expected += layer.bias[start:end]
                if not _gap(layer(x)[:, start:end].float(), expected) <= limit:
                    return False
        return True

    @torch.inference_mode()
    def _looks_up(
        self, table: CodedEmbedding, factor: float | None, numbers: Callable[[int, int], torch.Tensor]
    ) -> bool:
        """Whether the first and the last rows, from the last to the first, are what `numbers` says."""
        rows = table.num_embeddings
        for start in sorted({0, max(0, rows - _CHECKED_ROWS)}):
            end = min(start + _CHECKED_ROWS, rows)
            expected = numbers(start, end).float().to(self._device).flip(0) * (1 if factor is None else factor)
            found = table(torch.arange(end - 1, start - 1, -1, device=self._device))
            if not _gap(found.float(), expected) <= _LARGEST_GAPS[self._dtype]:
                return False
        return True


def can_keep_bits(device: torch.device) -> bool:
    """Whether the kernels may run there: on CUDA, on a GPU that is not older than Ampere."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def device_layers(device: torch.device, dtype: torch.dtype) -> DeviceLayers | None:
    """None where the kernels cannot run."""
    return DeviceLayers(device, dtype, CudaCodedOperations(device)) if can_keep_bits(device) else None


def _gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    norm = float(expected.norm())
    gap = float((found - expected).norm()) / norm if norm else float(found.norm())
    return math.inf if math.isnan(gap) else gap
