"""Tiny checkpoints in the packed formats that quantised models are published in, and what their weights mean.

The packing is written down here as the formats' own programs do it (AutoGPTQ, AutoAWQ, compressed-tensors), field by
field, and not taken from the code under test.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.model_runtime.tiny_formats import with_settings

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Tensors = dict[str, torch.Tensor]
Pack = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A `quantization_config`, and how a matrix `[N, K]` of a name is stored by it: tensors, and the float32 weight
    that they mean."""

    settings: dict[str, Any]
    pack: Pack


@dataclass(frozen=True, slots=True)
class Packed:
    """A checkpoint, and the float32 weights that its packed tensors mean, by the names of their layers."""

    directory: Path
    weights: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Groups:
    """Codes int64 `[N, K]`, scales `[N, groups]` of some dtype, zeros int64 `[N, groups]`, the group of each column."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    group_of: torch.Tensor

    def means(self) -> torch.Tensor:
        return self.scale.float()[:, self.group_of] * (self.codes - self.zero[:, self.group_of]).float()


def grouped(
    weight: torch.Tensor,
    bits: int,
    group: int,
    *,
    sym: bool,
    dtype: torch.dtype = torch.float16,
    order: torch.Tensor | None = None,
) -> Groups:
    """Rounds `[N, K]` to whole numbers, `group` columns sharing scale and zero; `order` lists the columns group by
    group."""
    columns = weight.shape[1]
    size = columns if group == -1 else group
    order = torch.arange(columns) if order is None else order
    group_of = torch.empty(columns, dtype=torch.int64)
    group_of[order] = torch.arange(columns) // size
    least, most, half = 0, 2**bits - 1, 2 ** (bits - 1)
    scales, zeros = [], []
    for number in range(-(-columns // size)):
        part = weight[:, group_of == number]
        if sym:
            scale = (part.abs().amax(1) / (half - 1)).clamp(min=1e-4).to(dtype)
            zeros.append(torch.full_like(scale, half, dtype=torch.int64))
        else:
            low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scale = ((high - low) / most).clamp(min=1e-4).to(dtype)
            zeros.append((-low / scale.float()).round().clamp(least, most).long())
        scales.append(scale)
    scale, zero = torch.stack(scales, 1), torch.stack(zeros, 1)
    codes = (weight / scale.float()[:, group_of]).round().long() + zero[:, group_of]
    return Groups(codes.clamp(least, most), scale, zero, group_of)


def words(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """`[n, m]` to int32 `[n, m * bits / 32]`, the first field lowest."""
    count = 32 // bits
    packed = sum(fields[:, place::count].long() << (bits * place) for place in range(count))
    assert isinstance(packed, torch.Tensor)
    return (((packed + 2**31) % 2**32) - 2**31).to(torch.int32)


def gptq(
    *,
    bits: int = 4,
    group: int = 32,
    sym: bool = True,
    version: str = "gptq",
    act_order: str | None = None,
    dtype: torch.dtype = torch.float16,
    with_groups: bool = True,
    **more: Any,
) -> Scheme:
    """`act_order` "shared": matrices that read the same inputs have the same order; "own": each has another one."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        order = None if act_order is None else _order(name, weight.shape[1], act_order)
        found = grouped(weight, bits, group, sym=sym, dtype=dtype, order=order)
        zeros = words(found.zero.t(), bits)
        if version == "gptq":  # one less, a word at a time
            ones = sum(1 << (bits * place) for place in range(32 // bits))
            zeros = (((zeros.long() - ones + 2**31) % 2**32) - 2**31).to(torch.int32)
        stored = {
            "qweight": words(found.codes, bits).t().contiguous(),
            "qzeros": zeros,
            "scales": found.scale.t().contiguous(),
        }
        if with_groups:
            stored["g_idx"] = found.group_of.to(torch.int32)
        return stored, found.means()

    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": act_order is not None,
        "sym": sym,
    }
    return Scheme(settings | {"checkpoint_format": version} | more, pack)


def awq(*, group: int = 32, dtype: torch.dtype = torch.float16, **more: Any) -> Scheme:
    def in_order(fields: torch.Tensor) -> torch.Tensor:
        return words(fields.view(fields.shape[0], -1, 8)[:, :, list(AWQ_ORDER)].flatten(1), 4)

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        found = grouped(weight, 4, group, sym=False, dtype=dtype)
        stored = {
            "qweight": in_order(found.codes.t()),
            "qzeros": in_order(found.zero.t()),
            "scales": found.scale.t().contiguous(),
        }
        return stored, found.means()

    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return Scheme(settings | more, pack)


def compressed(
    *,
    bits: int = 4,
    group: int = 32,
    sym: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "pack-quantized",
    actorder: bool = False,
    **more: Any,
) -> Scheme:
    """Whole numbers; `layout` "int-quantized" has bytes instead of words."""
    half = 2 ** (bits - 1)

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        order = _order(name, weight.shape[1], "shared") if actorder else None
        found = grouped(weight, bits, group, sym=sym, dtype=dtype, order=order)
        stored = {"weight_scale": found.scale}
        if layout == "int-quantized":
            stored["weight"] = (found.codes - half).to(torch.int8)
        else:
            stored["weight_packed"] = words(found.codes, bits)
            stored["weight_shape"] = torch.tensor(weight.shape)
        if not sym:
            packed = words(found.zero.t(), bits).t().contiguous()
            stored["weight_zero_point"] = (found.zero - half).to(torch.int8) if layout == "int-quantized" else packed
        if actorder:
            stored["weight_g_idx"] = found.group_of.to(torch.int32)
        return stored, found.means()

    weights = {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": "channel" if group == -1 else "group"}
    weights |= {"group_size": group, "actorder": "group" if actorder else None}
    return Scheme(compressed_settings(weights, layout) | more, pack)


def eights(settings: dict[str, Any], block: tuple[int, int] | None, dtype: torch.dtype) -> Scheme:
    """FP8 with `weight_scale`: one number a block, a row (block `(1, 0)`) or the whole matrix (None)."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        rows, columns = weight.shape
        high, wide = (rows, columns) if block is None else (block[0], block[1] or columns)
        scale = torch.empty(-(-rows // high), -(-columns // wide), dtype=dtype)
        of_all = torch.empty_like(weight)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                at = slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide)
                scale[i, j] = (weight[at].abs().amax() / 448).to(dtype)
                of_all[at] = scale[i, j].float()
        codes = (weight / of_all).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored = scale.reshape(1) if block is None else scale
        return {"weight": codes, "weight_scale": stored}, codes.float() * of_all

    return Scheme(settings, pack)


def mxfp4(source: Path, target: Path) -> Packed:
    """gpt-oss: the experts' matrices in FP4, 32 columns with an exponent each, two codes a byte. The weights are those
    of whole projections, `[experts, K, N]` as transformers has them."""
    with_settings(source, target, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    stored: Tensors = {}
    weights: Tensors = {}
    for key, weight in load_file(source / "model.safetensors").items():
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[key] = weight
            continue
        blocks = weight.transpose(1, 2).unflatten(2, (-1, 32))  # [experts, N, K/32, 32]
        exponent = (blocks.abs().amax(-1, keepdim=True) / 6).log2().ceil()
        codes = ((blocks / exponent.exp2()).unsqueeze(-1) - levels).abs().argmin(-1)
        stored[f"{key}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).to(torch.uint8)
        stored[f"{key}_scales"] = (exponent.squeeze(-1) + 127).to(torch.uint8)
        weights[key] = (levels[codes] * exponent.exp2()).flatten(2).transpose(1, 2).contiguous()
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    return Packed(target, weights)


def compressed_settings(weights: dict[str, Any], layout: str, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def llm_int8() -> Scheme:
    """bitsandbytes: a row's largest magnitude is 127."""

    def pack(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        largest = weight.abs().amax(1)
        codes = (weight * (127 / largest)[:, None]).round().to(torch.int8)
        stored = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
        return stored, codes * largest.view(-1, 1) * 7.874015718698502e-3

    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 6.0}
    return Scheme(settings, pack)


def float_settings(strategy: str, **more: Any) -> dict[str, Any]:
    """compressed-tensors with weights in FP8, and activations that its kernels would round to it."""
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, **more}
    inputs = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    return compressed_settings(weights, "float-quantized", inputs)


def written(source: Path, target: Path, scheme: Scheme, plain: str = "") -> Packed:
    """A copy of a plain checkpoint with the matrices of all layers stored by the scheme, but for those of the layer
    `plain`."""
    with_settings(source, target, scheme.settings)
    stored: Tensors = {}
    weights: Tensors = {}
    for key, weight in load_file(source / "model.safetensors").items():
        has_inputs_first = key.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))  # GPT-2
        is_matrix = has_inputs_first or key.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight"))
        if not is_matrix or key == f"{plain}.weight":
            stored[key] = weight
            continue
        base = key.removesuffix(".weight")
        parts, weights[base] = scheme.pack(key, (weight.t() if has_inputs_first else weight).float())
        stored |= {f"{base}.{name}": part.contiguous() for name, part in parts.items()}
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    return Packed(target, weights)


def _order(name: str, columns: int, kind: str) -> torch.Tensor:
    """Which columns come first: by the layer and what it reads, or by its name alone."""
    layer, part = name.rpartition(".")[0].rsplit(".", 2)[0], name.split(".")[-2]
    together = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "mlp", "up_proj": "mlp"}
    key = f"{layer} {together.get(part, part)}" if kind == "shared" else name
    return torch.randperm(columns, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
