"""The settings of Llama 3.1's rotary scaling are found again from the divisors that a file has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model_runtime.loading.checks.gguf_header import GgufHeader
from model_runtime.loading.gguf.metadata import Metadata
from model_runtime.loading.gguf.positions import rope_parameters


class OneTensor(Metadata):
    """The metadata of a file whose only tensor has these numbers."""

    def __init__(self, factors: np.ndarray, base: float) -> None:
        super().__init__(
            Path("file"), GgufHeader({"general.architecture": "llama", "llama.rope.freq_base": base}, {}, 0)
        )
        self._factors = factors

    def numbers_of(self, tensor: str) -> np.ndarray | None:
        return self._factors.astype(np.float32).astype(np.float64) if tensor == "rope_freqs.weight" else None


def frequencies(base: float, dim: int, rope: dict[str, object]) -> torch.Tensor:
    config = LlamaConfig(hidden_size=dim, num_attention_heads=1, head_dim=dim, max_position_embeddings=1 << 17)
    config.rope_parameters = {"rope_theta": base, **rope}
    found, scaling = ROPE_INIT_FUNCTIONS[str(rope["rope_type"])](config, "cpu")
    assert scaling == 1
    return found.double()


@pytest.mark.parametrize("seed", range(60))
def test_any_bend_is_found_again(seed: int) -> None:
    chance = np.random.default_rng(seed)
    dim, base = int(chance.choice([8, 16, 32, 64, 128, 256])), float(chance.choice([100.0, 1e4, 5e5, 1e6]))
    low = float(chance.uniform(0.25, 4))
    rope = {
        "rope_type": "llama3",
        "factor": float(chance.choice([2.0, 3.5, 8.0, 32.0])),
        "low_freq_factor": low,
        "high_freq_factor": low * float(chance.uniform(1.2, 8)),
        "original_max_position_embeddings": int(chance.integers(16, 1 << 14)),
    }
    plain = 1 / base ** (torch.arange(0, dim, 2).double() / dim)
    expected = frequencies(base, dim, rope)
    factors = (plain / expected).numpy()
    if np.allclose(factors, 1, rtol=1e-5):
        return
    found = rope_parameters(OneTensor(factors, base), dim, 1 << 17)
    assert found["rope_theta"] == base
    torch.testing.assert_close(frequencies(base, dim, found), expected, rtol=2e-6, atol=0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_has_its_own_settings(factor: float) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = 1 / 5e5 ** (torch.arange(0, 128, 2).double() / 128)
    factors = (plain / frequencies(5e5, 128, rope)).numpy()
    assert rope_parameters(OneTensor(factors, 5e5), 128, 1 << 17) == {"rope_theta": 5e5, **rope}
