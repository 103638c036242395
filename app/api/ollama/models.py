"""The served model as Ollama describes models."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from model_runtime.interface.chat import TurnTemplate
from model_runtime.interface.protocol import ModelInfo

SPOKEN_VERSION = "0.12.6"  # of Ollama, whose API this is: its clients compare it with what they need
ARCHITECTURE = "keepwarm"
FOREVER = "9999-12-31T00:00:00Z"


def described(info: ModelInfo, name: str, since: str) -> dict[str, Any]:
    """An entry of the list of models."""
    return {
        "name": name,
        "model": name,
        "modified_at": since,
        "size": info.weights_bytes,
        "digest": sha256(info.fingerprint.encode()).hexdigest(),
        "details": details(info),
    }


def running(info: ModelInfo, name: str, since: str) -> dict[str, Any]:
    """An entry of the list of loaded models. It stays loaded."""
    entry = described(info, name, since)
    del entry["modified_at"]
    on_device = info.weights_bytes if info.device != "cpu" else 0
    return {
        **entry,
        "expires_at": FOREVER,
        "size_vram": on_device,
        "context_length": info.context_limit_tokens,
    }


def shown(info: ModelInfo, template: TurnTemplate, name: str, since: str) -> dict[str, Any]:
    """Everything about a model."""
    sampling = info.default_sampling
    parameters = {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
    }
    abilities = {"tools": template.takes_tools, "thinking": template.has_thoughts}
    return {
        "modelfile": f"FROM {name}",
        "parameters": "\n".join(f"{key} {value}" for key, value in parameters.items()),
        "template": "",
        "modified_at": since,
        "details": details(info),
        "model_info": {
            "general.architecture": ARCHITECTURE,
            "general.basename": info.name,
            f"{ARCHITECTURE}.context_length": info.context_limit_tokens,
            f"{ARCHITECTURE}.vocab_size": info.vocabulary_tokens,
        },
        "capabilities": ["completion", *(ability for ability, has in abilities.items() if has)],
    }


def details(info: ModelInfo) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": ARCHITECTURE,
        "family": ARCHITECTURE,
        "families": [ARCHITECTURE],
        "parameter_size": "",
        "quantization_level": info.quantization,
    }
