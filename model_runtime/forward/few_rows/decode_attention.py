"""The attention of decode steps on CUDA with one kernel per layer, in cuda/decode_attention.cu."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from model_runtime.architecture.decoder_layout import head_dim_of
from model_runtime.forward.arena.step_inputs import StepTensors
from model_runtime.forward.arena.varlen import SpanTable
from model_runtime.forward.few_rows.nvrtc import CudaKernel, CudaModule
from model_runtime.forward.few_rows.placed_attention import PlacedAttention
from model_runtime.forward.few_rows.rotary import head_norm_fields

_WARPS = 4
_MOST_GROUP = 8  # query heads that share a key head: half the rows of an mma
_LEAST_SPAN = 128  # keys per block; with fewer, merging takes longer than attending
_MACROS = {"WARPS": _WARPS, "MOST_GROUP": _MOST_GROUP, "LEAST_SPAN": _LEAST_SPAN}
_DIMS = (64, 128)
_LARGEST_GAP = 0.02  # of the norm; bfloat16 rounds to 0.002 or 0.004


class _Attention(ctypes.Structure):
    """`Attention` of decode_attention.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("projected", "query_norm", "key_norm", "cosine", "sine", "slots")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "begins", "used", "attended")),
        *((name, ctypes.c_void_p) for name in ("partial", "sums", "arrived")),
        *((name, ctypes.c_int) for name in ("heads", "kv_heads")),
        *((name, ctypes.c_float) for name in ("scale", "epsilon")),
    )


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """The kernel for one head width, and the memory in which the blocks of a head are merged. Layers run one after the
    other and share it. `most_blocks`: how many blocks are worth starting."""

    kernel: CudaKernel
    most_blocks: int
    partial: torch.Tensor
    sums: torch.Tensor
    arrived: torch.Tensor

    def splits(self, max_k: int, heads: int) -> int:
        """Into how many blocks the keys of each of `heads` key heads are split."""
        return max(1, min(self.most_blocks // heads, -(-(max_k - 1) // _LEAST_SPAN)))


def decode_attention_kernel(device: torch.device, config: Any) -> DecodeKernel | None:
    """The kernel for this model; None if it does not support the model's heads. Raises `NvrtcUnavailable`."""
    groups, rest = divmod(int(config.num_attention_heads), int(config.num_key_value_heads))
    if rest or groups > _MOST_GROUP or head_dim_of(config) not in _DIMS:
        return None
    return _kernel(device, head_dim_of(config))


@cache
def _kernel(device: torch.device, dim: int) -> DecodeKernel:
    kernel = CudaModule("decode_attention.cu", device, _MACROS).kernel(f"attend_{dim}", 32 * _WARPS)
    blocks = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return DecodeKernel(
        kernel,
        blocks,
        torch.empty((blocks, _MOST_GROUP, dim), dtype=torch.float32, device=device),
        torch.empty((blocks, _MOST_GROUP, 2), dtype=torch.float32, device=device),
        torch.zeros(blocks, dtype=torch.int32, device=device),
    )


class DecodeAttention:
    """An `Attention` in bfloat16 that computes decode steps in one kernel and leaves other steps to `otherwise`. Engine
    thread, on torch's current stream of the current device."""

    def __init__(self, layer: Any, config: Any, kernel: DecodeKernel, otherwise: PlacedAttention) -> None:
        self._kernel, self._otherwise = kernel, otherwise
        self._heads, self._dim = int(config.num_attention_heads), head_dim_of(config)
        self._attention = _Attention(
            partial=kernel.partial.data_ptr(),
            sums=kernel.sums.data_ptr(),
            arrived=kernel.arrived.data_ptr(),
            heads=self._heads,
            kv_heads=int(config.num_key_value_heads),
            scale=float(layer.self_attn.scaling),
            **head_norm_fields(layer),
        )

    def __call__(
        self,
        projected: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        step: StepTensors,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        table = step.table
        if table.max_q > 1:
            return self._otherwise(projected, cosine, sine, step, keys, values)
        attention, sequences = self._attention, projected.shape[0]
        attended = projected.new_empty((sequences, self._heads * self._dim))
        attention.projected, attention.slots = projected.data_ptr(), step.slots.data_ptr()
        attention.cosine, attention.sine = cosine.data_ptr(), sine.data_ptr()
        attention.keys, attention.values = keys.data_ptr(), values.data_ptr()
        attention.begins, attention.used = table.cu_seq_k.data_ptr(), table.seqused_k.data_ptr()
        attention.attended = attended.data_ptr()
        heads = attention.kv_heads * sequences
        blocks = (self._kernel.splits(table.max_k, heads), heads)
        self._kernel.kernel.launch(blocks, attention, torch.cuda.current_stream(projected.device).cuda_stream)
        return attended


@torch.inference_mode()
def agrees(ours: DecodeAttention, placed: PlacedAttention, config: Any, device: torch.device) -> bool:
    """Whether it computes the same as the two kernels of `placed` and appends the same rows: for first tokens, for
    histories within one block and for histories that are split."""
    heads, kv_heads, dim = int(config.num_attention_heads), int(config.num_key_value_heads), head_dim_of(config)
    generator = torch.Generator(device).manual_seed(8)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).bfloat16()

    def numbers(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    begins, used = (2300, 2000, 20, 160, 900), (1, 129, 97, 700, 1001)
    angles = torch.randn((len(used), dim // 2), generator=generator, device=device).repeat(1, 2)
    projected = random(len(used), (heads + 2 * kv_heads) * dim)
    arena = random(2, 2400, kv_heads, dim)
    for max_k in (1024, 8192):
        table = SpanTable(numbers(*range(len(used) + 1)), numbers(*begins, 2400), numbers(*used), 1, max_k)
        last = [begin + tokens - 1 for begin, tokens in zip(begins, used, strict=True)]
        slots = torch.tensor(last, device=device)
        step = StepTensors(slots, slots, slots, slots[:0], table)
        one, other = arena.clone(), arena.clone()
        found = ours(projected.clone(), angles.cos().bfloat16(), angles.sin().bfloat16(), step, one[0], one[1])
        expected = placed(projected.clone(), angles.cos().bfloat16(), angles.sin().bfloat16(), step, other[0], other[1])
        if not max(_gap(found, expected), _gap(one, other)) <= _LARGEST_GAP:
            return False
    return True


def _gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    gap = float((found.float() - expected.float()).norm() / expected.float().norm())
    return math.inf if math.isnan(gap) else gap
