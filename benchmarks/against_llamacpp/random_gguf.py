"""Random models of real shapes as GGUF files: speed and memory depend on shapes and formats, not on what weights say.

A file has the embedded model's tokenizer, so that the same prose can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
    dequantize,
)

STD = 0.02  # of the weights
_HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}  # where blocks have float16


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model of the Llama kind; heads have `hidden / heads` numbers."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int


SHAPES = {"05b": Shape(1024, 4096, 24, 16, 4), "1b": Shape(2048, 5632, 22, 32, 4)}
FORMATS = {"q4_0": "Q4_0", "q4_1": "Q4_1", "q4_k_m": "Q4_K", "q8_0": "Q8_0"}


def write_model(shape: Shape, kind: str, tokenizer: Path, path: Path) -> None:
    """Writes a model whose matrices have a format of `FORMATS`, with the mixture that llama.cpp's own tool makes of
    it: Q4_0, Q4_1 and Q4_K_M keep the head, and Q4_K_M some other matrices, in Q6_K. `tokenizer` is the GGUF file
    that it is taken from."""
    reader = GGUFReader(tokenizer)
    writer = GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    _add_sizes(writer, shape, vocabulary, kind)
    random = np.random.default_rng(0)
    for name, (rows, columns) in matrices(shape, vocabulary).items():
        of_it = _kind_of(name, kind, shape.layers)
        writer.add_tensor(name, _blocks(of_it, rows, columns, random), raw_dtype=GGMLQuantizationType[of_it])
    norms = [f"blk.{layer}.{name}_norm" for layer in range(shape.layers) for name in ("attn", "ffn")]
    for name in ("output_norm", *norms):
        writer.add_tensor(f"{name}.weight", np.ones(shape.hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: GGUFWriter, shape: Shape, vocabulary: int, kind: str) -> None:
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    name = "Q4_K_M" if kind == "Q4_K" else kind
    writer.add_file_type(int(LlamaFileType[f"MOSTLY_{name}"]))


def matrices(shape: Shape, vocabulary: int) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of all matrices of a model, by their names in GGUF files."""
    hidden, width = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    layer = {
        "attn_q": (hidden, hidden),
        "attn_k": (width, hidden),
        "attn_v": (width, hidden),
        "attn_output": (hidden, hidden),
        "ffn_gate": (shape.intermediate, hidden),
        "ffn_up": (shape.intermediate, hidden),
        "ffn_down": (hidden, shape.intermediate),
    }
    ends = {"token_embd.weight": (vocabulary, hidden), "output.weight": (vocabulary, hidden)}
    return ends | {f"blk.{n}.{name}.weight": size for n in range(shape.layers) for name, size in layer.items()}


def _kind_of(name: str, kind: str, layers: int) -> str:
    if name == "output.weight" and kind != "Q8_0":
        return "Q6_K"
    if kind != "Q4_K" or not name.endswith(("attn_v.weight", "ffn_down.weight")):
        return kind
    layer = int(name.split(".")[1])
    has_more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return "Q6_K" if has_more else kind


def _blocks(kind: str, rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """uint8 `[rows, bytes of a row]`: random codes and sub-scales, and the same float16 scale in every block."""
    width, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (rows, columns // width, size), dtype=np.uint8)
    _set(blocks, kind, 1.0)
    sample = dequantize(blocks[:8].reshape(8, -1), GGMLQuantizationType[kind])
    _set(blocks, kind, STD / float(sample.std()))
    return blocks.reshape(rows, -1)


def _set(blocks: np.ndarray, kind: str, scale: float) -> None:
    """Minimums are 7.5 times the scale, half of the largest code: weights lie around 0."""
    for place, factor in zip(_HALVES[kind], (1.0, -7.5 if kind == "Q4_1" else 7.5), strict=False):
        blocks[..., place : place + 2] = np.frombuffer(np.float16(scale * factor).tobytes(), np.uint8)
