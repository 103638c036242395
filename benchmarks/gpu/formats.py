"""Checks and measures checkpoints that are quantised already: their label, their logits against transformers alone, and
their speed. Each is made here, with random weights, in the form in which such models are published."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.coded import coded
from benchmarks.gpu.shapes import number_tokenizer
from benchmarks.gpu.talk import ask, open_engine, some_ids
from model_runtime.loading.loaded import LoadedModel

EXACT_LIMIT = 1e-4  # of float32 throughout; largest difference in standard deviations of the logits
ROUNDED_LIMIT = 0.05  # of 16-bit activations; root mean square
GROUP = 128
_BLOCK = 32
_E4M3_LARGEST = 448.0


@dataclass(frozen=True, slots=True)
class Format:
    """One way to store weights. `make` turns a plain checkpoint into it, in place. `reference` are settings under which
    transformers alone reads it; None for a format that it reads with a package only: its plain model is given the
    weights that the format's formula makes."""

    needs: tuple[str, ...]
    label: str
    make: Callable[[Bench, Path], None]
    reference: dict[str, Any] | None


def formats(bench: Bench) -> None:
    """Products of every form of blocks, then checkpoints of all formats whose packages are installed; the others are
    noted as skipped."""
    coded(bench)
    for name, one in FORMATS.items():
        missing = [package for package in one.needs if not _is_installed(package)]
        if missing:
            bench.note(f"format_{name}", f"skipped: {', '.join(missing)} missing")
            continue
        bench.clean()
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder) / name
            plain_checkpoint(bench, directory)
            one.make(bench, directory)
            _checked(bench, name, one, directory)


def plain_checkpoint(bench: Bench, directory: Path) -> None:
    """A Llama with random weights: tiny on a CPU, four layers of an 8B on a GPU."""
    width, layers = (256, 2) if bench.is_tiny else (4096, 4)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        max_position_embeddings=4096,
        initializer_range=width**-0.5,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).to(bench.dtype).save_pretrained(directory)
    tokenizer = number_tokenizer(512)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(directory)


def make_fp8(bench: Bench, directory: Path) -> None:
    """E4M3 with a scale for each block of 32 x 32."""

    def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, columns = weight.shape
        blocks = weight.float().view(rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
        scale = blocks.abs().amax((1, 3)) / _E4M3_LARGEST
        codes = (blocks / scale[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
        return {f"{name}.weight": codes, f"{name}.weight_scale_inv": scale}

    settings = {"quant_method": "fp8", "weight_block_size": [_BLOCK, _BLOCK], "activation_scheme": "dynamic"}
    _rewrite(directory, packed, settings)


def make_bitsandbytes(bench: Bench, directory: Path) -> None:
    """NF4 with double quantization, made and saved by bitsandbytes itself."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    AutoModelForCausalLM.from_pretrained(
        directory, quantization_config=settings, dtype=bench.dtype, device_map={"": str(bench.device)}
    ).save_pretrained(directory)


def make_gptq(bench: Bench, directory: Path) -> None:
    """Random 4-bit codes in groups of 128 with zero points of 8 (stored as 7), in AutoGPTQ's layout."""

    def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, columns = weight.shape
        words = torch.randint(-(2**31), 2**31 - 1, (columns // 8, rows), dtype=torch.int64).to(torch.int32)
        zeros = torch.full((columns // GROUP, rows // 8), 0x77777777, dtype=torch.int32)
        scales = torch.full((columns // GROUP, rows), 0.2 / columns**0.5, dtype=torch.float16)
        group = torch.arange(columns, dtype=torch.int32) // GROUP
        return {f"{name}.qweight": words, f"{name}.qzeros": zeros, f"{name}.scales": scales, f"{name}.g_idx": group}

    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    _rewrite(directory, packed, settings)


def make_compressed(bench: Bench, directory: Path, bits: int) -> None:
    """Random codes of 4 or 8 bits in groups of 128, in the layout pack-quantized of compressed-tensors."""

    def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, columns = weight.shape
        words = torch.randint(-(2**31), 2**31 - 1, (rows, columns * bits // 32), dtype=torch.int64).to(torch.int32)
        size = 3.2 / 2**bits / columns**0.5
        return {
            f"{name}.weight_packed": words,
            f"{name}.weight_scale": torch.rand(rows, columns // GROUP).add_(0.5).mul_(size).to(torch.bfloat16),
            f"{name}.weight_shape": torch.tensor([rows, columns]),
        }

    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
    }
    _rewrite(directory, packed, settings)


def make_fbgemm(bench: Bench, directory: Path) -> None:
    """E4M3 with a scale for each row."""

    def packed(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = weight.float().abs().amax(1, keepdim=True) / _E4M3_LARGEST
        return {f"{name}.weight": (weight.float() / scale).to(torch.float8_e4m3fn), f"{name}.weight_scale": scale}

    _rewrite(directory, packed, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0})


_BASE = ("accelerate", "gguf")
FORMATS = {
    "fp8": Format(_BASE, "8-bit FP8 as shipped", make_fp8, {"dequantize": True}),
    "bnb4": Format((*_BASE, "bitsandbytes"), "4-bit NF4 (bitsandbytes) as shipped", make_bitsandbytes, {}),
    "gptq": Format(_BASE, "4-bit GPTQ as shipped", make_gptq, None),
    "w4a16": Format(_BASE, "4-bit compressed-tensors as shipped", partial(make_compressed, bits=4), None),
    "w8a16": Format(_BASE, "8-bit compressed-tensors as shipped", partial(make_compressed, bits=8), None),
    "fbgemm": Format(_BASE, "8-bit FP8 (fbgemm) as shipped", make_fbgemm, None),
}


def _checked(bench: Bench, name: str, one: Format, directory: Path) -> None:
    from model_runtime.interface.config import ModelConfig  # needs accelerate and gguf, which this command does not
    from model_runtime.loading.loading import load_model
    from model_runtime.reference.transformers_side import load_reference

    config = ModelConfig(str(directory), device=str(bench.device), cache_dir=directory.parent / "cache")
    loaded = replace(load_model(config, lambda line: print(f"# {line}")), stop_token_ids=frozenset())
    bench.note(f"format_{name}", loaded.quantization)
    bench.check(f"{name}: the label", loaded.quantization.startswith(one.label), loaded.quantization)
    bench.figure(f"format_{name}_weights_mib", loaded.weights_bytes / 2**20)
    ids = some_ids(loaded, 200)
    found = _logits(loaded.model, ids)
    if one.reference is not None:
        expected = _read_alone(bench, loaded, directory, one.reference, ids)
    else:
        expected = _logits(load_reference(directory, loaded.kv_dtype, str(bench.device), None, None).model, ids)
    difference = (found - expected) / expected.std()
    is_exact = loaded.kv_dtype == torch.float32
    gap, limit = (
        (float(difference.abs().max()), EXACT_LIMIT)
        if is_exact
        else (float(difference.square().mean().sqrt()), ROUNDED_LIMIT)
    )
    detail = f"(difference {gap:.2g}, allowed {limit:g})"
    bench.check(f"{name}: logits equal those of transformers alone", gap <= limit, detail)
    _measure(bench, name, loaded, ids)


def _read_alone(
    bench: Bench, loaded: LoadedModel, directory: Path, reference: dict[str, Any], ids: list[int]
) -> torch.Tensor:
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    config.quantization_config = {**config.quantization_config, **reference}
    alone = AutoModelForCausalLM.from_pretrained(
        directory, config=config, dtype=loaded.kv_dtype, device_map={"": str(bench.device)}, trust_remote_code=False
    ).eval()
    for layer in alone.modules():
        if type(layer).__name__ == "Linear4bit":  # it would round to what the checkpoint's maker computed in
            layer.compute_dtype, layer.support_avx512bf16_for_cpu = loaded.kv_dtype, False
    return _logits(alone, ids)


def _measure(bench: Bench, name: str, loaded: LoadedModel, ids: list[int]) -> None:
    tokens = 8 if bench.is_tiny else 64
    engine = open_engine(bench, loaded, 2048, 4096)
    try:
        answer = ask(engine, engine.new_kv(), ids, tokens).wait()
        bench.figure(f"format_{name}_decode_tok_s", (tokens - 1) / (answer.times[-1] - answer.times[0]))
    finally:
        engine.close()


@torch.inference_mode()
def _logits(model: Any, ids: list[int]) -> torch.Tensor:
    row = torch.tensor([ids], device=next(model.parameters()).device)
    logits: torch.Tensor = model(row, use_cache=False).logits
    return logits[0].float()


def _rewrite(
    directory: Path, packed: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], settings: dict[str, Any]
) -> None:
    """Replaces the layers' matrices by what `packed` makes of them, and says so in the config."""
    tensors: dict[str, torch.Tensor] = {}
    for key, weight in load_file(directory / "model.safetensors").items():
        tensors |= packed(key.removesuffix(".weight"), weight) if "_proj." in key else {key: weight}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it was made impossible to import
        return False
