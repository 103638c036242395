"""What a person may ask for is checked where it is asked, with a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model_runtime.interface.config import EngineConfig, ModelConfig, default_cache_dir


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"model": " "}, "Name a model"),
        ({"quantization": "int3"}, "must be one of auto, shipped, nf4, int8, none, not 'int3'"),
        ({"context_limit_tokens": 3}, "at least 16 tokens, not 3"),
        ({"device": "tpu"}, "'cpu', 'cuda' or 'cuda:<number>', not 'tpu'"),
    ],
)
def test_model_settings_are_checked_with_a_sentence(setting: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ModelConfig(**setting)


@pytest.mark.parametrize(
    "field", ["prefill_chunk_tokens", "max_concurrent", "kv_step_tokens", "idle_chunk_tokens", "kv_arena_bytes"]
)
def test_engine_sizes_must_be_positive(field: str) -> None:
    with pytest.raises(ValueError, match="not 0"):
        EngineConfig(**{field: 0})


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"pinned_host_bytes": -1}, "0 or more bytes, not -1"),
        ({"prompt_lookup": "maybe"}, "must be one of auto, on, off, not 'maybe'"),
        ({"kv_dtype": "int8"}, "must be one of auto, float32, float16, not 'int8'"),
        ({"cold_kv_dtype": "int4"}, "must be one of exact, int8, not 'int4'"),
    ],
)
def test_engine_settings_are_checked_with_a_sentence(setting: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EngineConfig(**setting)


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "keepwarm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == Path.home() / ".cache" / "keepwarm"


def test_config_imports_no_torch() -> None:
    code = "import sys, model_runtime.interface.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
