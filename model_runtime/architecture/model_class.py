"""Which of transformers' classes loads a checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

_TEXT_CLASS_READS_IT = frozenset({"gemma3n"})


def auto_class(config: PreTrainedConfig) -> Any:
    """The class for text models, or for models of images or sound and text whose text model can run alone (Mistral 3,
    Qwen3-VL, Voxtral); only text is supported. The class for text models also if transformers knows neither, because
    its error says so."""
    kind = type(config)
    if not _is_text_model(config) and kind in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def text_alone(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the text model that is loaded instead of a composite one; any other config as it is. Gemma 3n's
    text class reads composite checkpoints, and its eyes need a package (timm) that texts do not."""
    if config.model_type not in _TEXT_CLASS_READS_IT:
        return config
    text: Any = config.get_text_config()
    stored = getattr(config, "quantization_config", None)
    if stored is not None:
        text.quantization_config = stored
    own: PreTrainedConfig = text
    return own


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
