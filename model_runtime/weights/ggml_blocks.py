"""Blocks of ggml's other types (K-quants, IQ types, MXFP4) as the file has them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class GgmlBlocks:
    """A matrix, or a stack of them, uint8 `[.., N, bytes of a row]`. `kind` is the name of its type in gguf."""

    rows: torch.Tensor
    kind: str

    def dequantise(self) -> torch.Tensor:
        """The weights, float32 `[.., N, K]`, exactly as the file means them (gguf's own arithmetic). numpy lets go of
        the GIL, so pieces are computed at the same time."""
        from gguf import GGMLQuantizationType, dequantize  # only here: models without such blocks run without gguf

        kind = GGMLQuantizationType[self.kind]
        flat = self.rows.reshape(-1, self.rows.shape[-1]).numpy()
        count = max(1, _PIECE_BYTES // flat.shape[1])
        pieces = [flat[start : start + count] for start in range(0, flat.shape[0], count)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            numbers = list(pool.map(lambda piece: torch.from_numpy(dequantize(piece, kind)), pieces))
        return torch.cat(numbers).reshape(*self.rows.shape[:-1], -1)
