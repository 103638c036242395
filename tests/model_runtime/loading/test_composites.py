"""A model of images and text loads, and its text model runs alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_runtime.interface.config import ModelConfig
from model_runtime.loading.loading import context_limit_tokens, load_model
from tests.model_runtime.tiny_families import tiny_family
from tests.model_runtime.tiny_models import tiny_tokenizer


@pytest.mark.parametrize("name", ["mistral3 (composite)", "qwen3_vl (composite)", "phi3 with long RoPE"])
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
