"""Which of transformers' classes loads a checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)


def auto_class(config: PreTrainedConfig) -> Any:
    """The class for text models, or for models of images and text whose text model can run alone (Mistral 3, Qwen3-VL);
    images are not supported. The class for text models also if transformers knows neither, because its error says
    so."""
    kind = type(config)
    if not _is_text_model(config) and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _is_text_model(config: PreTrainedConfig) -> bool:
    """Whether `AutoModelForCausalLM` builds it. It knows some composite models (Emu3) without knowing the text config
    that it would build them from."""
    kind = type(config)
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    return (
        MODEL_FOR_CAUSAL_LM_MAPPING[kind].config_class is kind or type(_text_of(config)) in MODEL_FOR_CAUSAL_LM_MAPPING
    )


def _text_of(config: PreTrainedConfig) -> Any:
    try:
        return config.get_text_config()
    except ValueError:  # more than one
        return config
