"""A model of images and text loads, and its text model runs alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_runtime.interface.config import ModelConfig
from model_runtime.loading.loading import context_limit_tokens, load_model
from tests.model_runtime.small_configs import save_small, small_config
from tests.model_runtime.tiny_families import tiny_family
from tests.model_runtime.tiny_models import tiny_tokenizer


@pytest.mark.parametrize(
    "name", ["mistral3 (composite)", "qwen3_vl (composite)", "llama4 (composite)", "phi3 with long RoPE"]
)
def test_it_loads_with_its_own_weights(name: str, tmp_path: Path) -> None:
    model = tiny_family(name)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    loaded = load_model(ModelConfig(str(tmp_path / "model"), "none", cache_dir=tmp_path, device="cpu"), print)
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found, expected = (m(ids, use_cache=False).logits for m in (loaded.model, model))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert context_limit_tokens(loaded, None) == 512


def test_gemma_3n_runs_without_its_eyes_and_ears(tmp_path: Path) -> None:
    """They need a package (timm) that texts do not."""
    alone = save_small(small_config("gemma3n_text", {}), tmp_path / "alone")
    whole = save_small(small_config("gemma3n_text", {}), tmp_path / "whole")
    weights = load_file(whole / "model.safetensors")
    named = {key.replace("model.", "model.language_model.", 1): value for key, value in weights.items()}
    for part in ("vision_tower.timm_model.conv_stem.conv", "embed_vision.embedding", "embed_audio.embedding"):
        named[f"model.{part}.weight"] = torch.ones(4, 4)
    save_file(named, whole / "model.safetensors", {"format": "pt"})
    text = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({"model_type": "gemma3n", "text_config": text}))

    models = [load_model(ModelConfig(str(p), "none", cache_dir=tmp_path, device="cpu"), print) for p in (alone, whole)]
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = (loaded.model(ids, use_cache=False).logits for loaded in models)
    assert torch.equal(found, expected)
    for kind in ("pictures", "sound"):
        assert any(note.endswith(f"they are for {kind}.") for note in models[1].notes)
