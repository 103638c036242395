"""What a person may ask for is checked where it is asked, with a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model_runtime.interface.config import EngineConfig, ModelConfig, default_cache_dir


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"model": " "}, "Name a model"),
        ({"quantization": "int3"}, "must be one of auto, shipped, nf4, int8, none, not 'int3'"),
        ({"context_limit_tokens": 3}, "at least 16 tokens, not 3"),
        ({"device": "tpu"}, "'cpu', 'cuda' or 'cuda:<number>', not 'tpu'"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_with_a_sentence(wish: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ModelConfig(**wish)


@pytest.mark.parametrize("field", ["prefill_chunk_tokens", "max_concurrent", "kv_step_tokens"])
def test_engine_sizes_must_be_positive(field: str) -> None:
    with pytest.raises(ValueError, match="not 0"):
        EngineConfig(**{field: 0})


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "keepwarm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache_dir() == Path.home() / ".cache" / "keepwarm"


def test_config_imports_no_torch() -> None:
    code = "import sys, model_runtime.interface.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
