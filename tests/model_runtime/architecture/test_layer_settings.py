"""Configs whose layers differ in settings that others have once: each layer is read, and none stands for all."""

from __future__ import annotations

import pytest
from transformers import Gemma4TextConfig, LlamaConfig

from model_runtime.architecture.config_check import check_config
from model_runtime.architecture.layer_settings import differs_by_layer, values_of
from model_runtime.interface.errors import ModelLoadError

LAYERS = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}


def test_every_layers_value_is_read() -> None:
    config = Gemma4TextConfig(**LAYERS, head_dim=256, global_head_dim=512)
    assert differs_by_layer(config)
    assert differs_by_layer(config, "head_dim")
    assert values_of(config, "head_dim") == [256, 512, 256, 512]
    assert values_of(config, "hidden_size") == [config.hidden_size]
    assert values_of(LlamaConfig(), "no such setting") == [None]
    assert not differs_by_layer(LlamaConfig())
    check_config(config, "Mine")


def test_an_impossible_value_of_one_layer_is_refused() -> None:
    config = Gemma4TextConfig(**LAYERS, head_dim=256, global_head_dim=512)
    config.per_layer_config = {1: {"head_dim": -8}}
    with pytest.raises(ModelLoadError, match="head_dim is -8"):
        check_config(config, "Mine")
