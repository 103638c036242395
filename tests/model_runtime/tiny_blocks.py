"""Random blocks of ggml's formats. The gguf library de-quantises all of them and quantises few."""

from __future__ import annotations

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

SCATTERED = -1  # IQ1_M: four bits each, in the upper ends of the last four words
# Where a block has its float16 numbers, in bytes.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "MXFP4": (),
    "IQ1_S": (0,),
    "IQ1_M": (SCATTERED,),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
}
EXPONENT = {"MXFP4": 0}  # where a block has the exponent of its scale
_LARGEST = {"Q4_0": 0x6FFF}  # 8,188: -8 times that is a float16 too, as the cache needs it


def block_bytes(kind: str) -> int:
    """The size of a block."""
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1])


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0, std: float = 0.15) -> np.ndarray:
    """A matrix with weights of that standard deviation, uint8 `[rows, bytes of a row]`; all codes and sub-scales
    occur."""
    random = np.random.default_rng(seed)
    width = int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])
    blocks = random.integers(0, 256, (rows, columns // width, block_bytes(kind)), dtype=np.uint8)
    signs = random.choice([-1.0, 1.0], blocks.shape[:2])
    halves = {place: signs * random.uniform(0.5, 1.5, blocks.shape[:2]) for place in HALVES[kind]}
    for place, numbers in halves.items():
        set_halves(blocks, place, numbers)
    for place in (EXPONENT[kind],) if kind in EXPONENT else ():
        blocks[..., place] = random.integers(121, 124, blocks.shape[:2])
    found = float(values(kind, blocks.reshape(rows, -1)).std())
    for place, numbers in halves.items():
        set_halves(blocks, place, numbers * std / found)
    return blocks.reshape(rows, -1)


def extreme_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """The same with any finite scales: zeros, subnormal ones, the largest, of either sign."""
    random = np.random.default_rng(seed)
    blocks = random_blocks(kind, rows, columns, seed).reshape(rows, -1, block_bytes(kind))
    for place in HALVES[kind]:
        largest = _LARGEST.get(kind, 0x7BFF)  # 65,504
        bits = random.integers(0, largest + 1, blocks.shape[:2], dtype=np.uint16)
        bits[0] = largest
        bits[1:2] = 1  # the smallest
        sign = random.integers(0, 2, bits.shape, dtype=np.uint16) << np.uint16(15)
        set_halves(blocks, place, (bits | sign).view(np.float16))
    for place in (EXPONENT[kind],) if kind in EXPONENT else ():
        blocks[..., place] = random.integers(0, 250, blocks.shape[:2])
        blocks[0, :, place] = 0
        blocks[1:2, :, place] = 1
    return blocks.reshape(rows, -1)


def set_halves(blocks: np.ndarray, place: int, numbers: np.ndarray) -> None:
    """Writes a float16 into each block."""
    if place == SCATTERED:
        bits = numbers.astype("<f2").view(np.uint16)
        for word in range(4):
            last = blocks.shape[-1] - 7 + 2 * word
            blocks[..., last] = blocks[..., last] & 15 | ((bits >> 4 * word & 15) << 4).astype(np.uint8)
        return
    blocks[..., place : place + 2] = numbers.astype("<f2")[..., None].view(np.uint8)


def values(kind: str, rows: np.ndarray) -> np.ndarray:
    """The float32 weights that the gguf library reads."""
    numbers: np.ndarray = dequantize(rows, GGMLQuantizationType[kind])
    return numbers
