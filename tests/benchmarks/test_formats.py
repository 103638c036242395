"""The GPU command's section on quantised checkpoints, on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.gpu import formats
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.coded import forms
from model_runtime.loading.checkpoint import format_of
from model_runtime.loading.checks.format_check import check_format


def test_every_format_is_checked_or_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"accelerate", "gguf"}
    monkeypatch.setattr(formats, "_is_installed", lambda package: package in there)
    bench = Bench(torch.device("cpu"), 600.0, is_tiny=True)
    formats.formats(bench)
    assert [name for name, passed in bench.checks.items() if not passed] == []
    products = [name for name in bench.checks if name.startswith("coded ")]
    assert len(products) == len(forms(16, 256))
    assert len(bench.checks) == 2 * 5 + len(products)
    assert all(bench.figures[f"coded_{name}_{tokens}_us"] > 0 for name in ("Q4_K", "NF4") for tokens in (1, 512))
    assert bench.notes == {
        "format_fp8": "8-bit FP8 as shipped, multiplied in float32",
        "format_bnb4": "skipped: bitsandbytes missing",
        "format_gptq": "4-bit GPTQ as shipped",
        "format_w4a16": "4-bit compressed-tensors as shipped",
        "format_w8a16": "8-bit compressed-tensors as shipped",
        "format_fbgemm": "8-bit FP8 (fbgemm) as shipped, multiplied in float32",
    }
    assert all(bench.figures[f"format_{name}_decode_tok_s"] > 0 for name in ("fp8", "gptq", "w4a16"))


def test_the_gptq_checkpoint_has_the_layout_it_says(tmp_path: Path) -> None:
    bench = Bench(torch.device("cpu"), 600.0, is_tiny=True)
    formats.plain_checkpoint(bench, tmp_path / "gptq")
    formats.make_gptq(bench, tmp_path / "gptq")
    stored = format_of(tmp_path / "gptq")
    assert stored is not None
    assert stored.name == "4-bit GPTQ"
    check_format("gptq", stored, "cpu", dequantises=False)
    with safe_open(tmp_path / "gptq" / "model.safetensors", framework="pt") as file:
        name = "model.layers.0.mlp.down_proj"  # 256 outputs, 512 inputs
        shapes = {part: tuple(file.get_tensor(f"{name}.{part}").shape) for part in ("qweight", "qzeros", "scales")}
        assert shapes == {"qweight": (64, 256), "qzeros": (4, 32), "scales": (4, 256)}
