"""What is wrong in a config.json is said in one sentence that names the setting, before weights are read or fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from model_runtime.interface.config import ModelConfig
from model_runtime.interface.errors import ModelLoadError
from model_runtime.loading.hub import downloads as hub
from model_runtime.loading.loading import load_model
from tests.conftest import TinyDir

NAN, INFINITY = float("nan"), float("inf")
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_attention_heads": 0}, "its num_attention_heads is 0, and must be a whole number above 0"),
    ({"num_attention_heads": -4}, "its num_attention_heads is -4"),
    ({"num_attention_heads": "4"}, "its num_attention_heads is '4', and must be a whole number"),
    (
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": None},
        "not a multiple of num_attention_heads .3.",
    ),
    ({"num_key_value_heads": 3}, "4 heads cannot share 3 key heads"),
    ({"num_key_value_heads": 0}, "its num_key_value_heads is 0"),
    ({"hidden_size": -64}, "its hidden_size is -64"),
    ({"hidden_size": 64.5}, "its hidden_size is 64.5"),
    ({"intermediate_size": 0}, "its intermediate_size is 0"),
    ({"vocab_size": 0}, "its vocab_size is 0"),
    ({"vocab_size": 100}, "its tokenizer has the token .* but the model has only 100 embeddings"),
    ({"max_position_embeddings": 0}, "its max_position_embeddings is 0"),
    ({"num_hidden_layers": 0}, "its num_hidden_layers is 0"),
    ({"num_hidden_layers": 10**9}, "its num_hidden_layers is 1000000000, and must be a whole number from 1 to 1,000"),
    ({"num_hidden_layers": None}, "num_hidden_layers"),
    ({"head_dim": 15}, "head_dim.=15"),
    ({"model_type": ["llama"]}, "its config's model_type is .'llama'., and must be a name"),
    ({"model_type": None}, "its config has no model_type"),
    ({"model_type": 7}, "its config's model_type is 7"),
    ({"model_type": "llamma"}, "its config's model_type is 'llamma', which transformers .* does not know"),
    ({"torch_dtype": "float7"}, "its torch_dtype is 'float7', and torch has no numbers of that kind"),
    ({"dtype": "Tensor"}, "its dtype is 'Tensor'"),
    ({"hidden_act": "swoosh"}, "its hidden_act is 'swoosh', which is no activation function"),
    ({"hidden_act": 3}, "hidden_act"),
    ({"rope_theta": 0}, "its rope_theta is 0, and must be a number above 0"),
    ({"rope_theta": -10000.0}, "its rope_theta is -10000.0"),
    ({"rope_theta": 5e5}, "its rope_theta is 500000.0, and 10000.0 among its rotary parameters"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_parameters.rope_theta is 0"),
    ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_type is 'spiral'"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
    ({"rms_norm_eps": NAN}, "its rms_norm_eps is nan"),
    ({"initializer_range": INFINITY}, "initializer_range"),
    ({"attention_dropout": NAN}, "its attention_dropout is nan"),
    ({"something_new": [1.0, INFINITY]}, "its something_new is inf, which is not a number"),
    ({"something_new": {"__float__": "NaN"}}, "its something_new is nan"),
    ({"layer_types": ["full_attention"] * 2}, "num_hidden_layers.* .3.|lists 2 layers"),
    ({"layer_types": ["full", "full", "full"]}, "layer_types"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
]


def described(source: Path, target: Path, changes: dict[str, Any]) -> Path:
    """The checkpoint without its weights, its config changed."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[json.dumps(changes) for changes, _ in REFUSED])
def test_it_is_refused_before_weights_are_fetched(
    changes: dict[str, Any], sentence: str, tiny_dir: TinyDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = described(tiny_dir("llama"), tmp_path / "snapshot", changes)
    asked: list[list[str]] = []

    def download(model_id: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns)
        return str(directory)

    monkeypatch.setattr(hub, "snapshot_download", download)
    with pytest.raises(ModelLoadError, match=f"^org/mine cannot be (used|loaded): .*({sentence}).*[.]$") as refused:
        load_model(ModelConfig("org/mine", cache_dir=tmp_path, device="cpu"), print)
    assert "\n" not in str(refused.value)
    assert len(asked) == 1


def test_a_part_of_a_composite_config_is_named(tiny_dir: TinyDir, tmp_path: Path) -> None:
    config = {"model_type": "llava", "text_config": {"model_type": "llama", "num_attention_heads": 0}}
    directory = described(tiny_dir("llama"), tmp_path / "mine", config)
    with pytest.raises(ModelLoadError, match=r"its text_config\.num_attention_heads is 0"):
        load_model(ModelConfig(str(directory), cache_dir=tmp_path, device="cpu"), print)
