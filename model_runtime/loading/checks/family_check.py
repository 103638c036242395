"""Checks, from a config alone, that a model's family is one whose memory Keepwarm can hold: keys and values of tokens.

The reasons here are those of known families and of what a config declares of its layers. What a config does not tell
is found out later, when the model's attention is compared with its own (`forward/probe.py`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence

from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, PretrainedConfig

from model_runtime.interface.errors import ModelLoadError

_AUTO_CLASSES = (AutoModelForCausalLM, AutoModelForMultimodalLM)
_POSITIONS_BY_PADDING = "create_position_ids_from_input_ids"
_STATE_KINDS = frozenset({"linear_attention", "conv", "mamba", "mamba2", "recurrent", "hybrid", "hybrid_sliding"})
_INDEXED_KINDS = frozenset({"indexed_attention"})
_COMPRESSED_KINDS = frozenset({"compressed_sparse_attention", "heavily_compressed_attention"})
_REASONS = {
    "diffllama": "each of its layers computes two attentions with different values, which Keepwarm cannot hold yet",
    "longcat_flash": "each of its layers has two attentions with keys of their own, which Keepwarm cannot hold yet",
    "blt": "it reads bytes in patches of changing length through three models, not tokens",
    "gemma4_assistant": "it drafts for another model and reads that model's keys and values",
    "gemma4_unified_assistant": "it drafts for another model and reads that model's keys and values",
    "doge": "its layers hide keys with a mask that they compute from the text, which Keepwarm cannot do yet",
    "git": "it computes attention in code of its own, which Keepwarm cannot replace",
    "diffusion_gemma": "it writes blocks of tokens in several passes, in both directions, and does not continue a text "
    "token by token",
    "paligemma": "it reads a prompt in both directions, so that a later turn would change what is kept of earlier ones",
    **dict.fromkeys(
        ("qwen2_5_omni", "qwen3_omni_moe"),
        "it is a model of texts with a second one that speaks; only one with its thinker alone can be run",
    ),
    "pi0": "it plans a robot's movements and does not continue a text",
    "shieldgemma2": "it classifies pictures and does not continue a text",
    "mllama": "its layers that look at pictures are left out where there is only text, which Keepwarm cannot pack yet",
    "hrm_text": "it runs its layers several times for each token, each time with keys of their own, which Keepwarm "
    "cannot hold yet",
}
# Without their encoders they continue texts, but know only the length of a cache that holds one conversation.
_DECODERS = frozenset(
    {
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus", "plbart"),
        *("prophetnet", "trocr", "whisper"),
    }
)
# Attention in code of their own that can be replaced: the probe looks at what runs in its place.
_REPLACEABLE = frozenset(
    {
        *("bloom", "codegen", "falcon", "gpt_neo", "gpt_neox_japanese", "gptj", "mpt", "openai-gpt", "xglm"),
        *("gpt2", "gpt_bigcode", "opt"),
    }
)
# Masked language models read in both directions unless their config makes them decoders.
_MASKED = frozenset(
    {
        *(
            "bert",
            "bert-generation",
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "rembert",
            "roberta",
        ),
        *("roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    }
)


def check_family(name: str, config: PretrainedConfig) -> None:
    """Raises `ModelLoadError` with the reason why a model of this config cannot be run."""
    try:
        text = config.get_text_config()
        reason = (
            _other_task(config)
            or _of_layers(text)
            or _REASONS.get(str(config.model_type))
            or _REASONS.get(str(text.model_type))
            or _of_class(config)
            or _own_positions(config)
            or _own_attention(config)
        )
    except ValueError:  # transformers' way to say so
        reason = "it consists of more than one model of texts"
    if reason:
        raise ModelLoadError(f"{name} (a {config.model_type} model) cannot be run: {reason}.")


def _other_task(config: PretrainedConfig) -> str | None:
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder with a decoder, which turns one text into another and does not continue a conversation"
    if config.model_type in _MASKED and not getattr(config, "is_decoder", False):
        return "it fills gaps in a text, reading in both directions, and does not continue one"
    if not any(type(config) in auto._model_mapping for auto in _AUTO_CLASSES):
        return "transformers has no model of this family that continues a text"
    if config.model_type in _DECODERS:
        return (
            "it is the decoder of an encoder with a decoder, which counts positions itself and cannot share a forward "
            "between conversations"
        )
    if getattr(config, "use_bidirectional_attention", None) in (True, "all"):
        return "its layers read in both directions (use_bidirectional_attention), so it does not continue a text"
    return None


def _of_layers(text: PretrainedConfig) -> str | None:
    kinds: Sequence[str] = getattr(text, "layer_types", None) or ()
    stateful = [kind for kind in kinds if kind in _STATE_KINDS]
    if stateful:
        said, keep = ", ".join(sorted(set(stateful))), "keeps" if len(stateful) == 1 else "keep"
        return (
            f"of its {len(kinds)} layers, {len(stateful)} ({said}) {keep} a recurrent or convolution state, which "
            "Keepwarm cannot save, crop and restore yet"
        )
    if _INDEXED_KINDS & set(kinds) or (not kinds and getattr(text, "index_topk", None)):
        return (
            "its layers choose the tokens they attend to with an indexer, which has keys of its own that Keepwarm "
            "cannot hold yet"
        )
    if _COMPRESSED_KINDS & set(kinds):
        return "its layers attend to summaries of many tokens, which Keepwarm cannot hold yet"
    return None


def _of_class(config: PretrainedConfig) -> str | None:
    """For families that do not list their layers."""
    architecture = _architecture(config)
    if getattr(architecture, "_is_stateful", False) and not getattr(config.get_text_config(), "layer_types", None):
        return "its layers keep a recurrent state, which Keepwarm cannot save, crop and restore yet"
    return None


def _own_positions(config: PretrainedConfig) -> str | None:
    """For RoBERTa and its like, whose positions depend on where a text has padding tokens."""
    architecture = _architecture(config)
    if architecture is None or _POSITIONS_BY_PADDING not in inspect.getsource(sys.modules[architecture.__module__]):
        return None
    return (
        "it counts positions itself, from its padding token's id on and without padding tokens, which cannot be done "
        "for several conversations in one forward"
    )


def _own_attention(config: PretrainedConfig) -> str | None:
    architecture = _architecture(config)
    is_composite = config.get_text_config() is not config  # its text model is in another module
    if architecture is None or is_composite or config.model_type in _REPLACEABLE:
        return None
    if "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(sys.modules[architecture.__module__]):
        return None
    return "it computes attention in code of its own, which Keepwarm cannot replace"


def _architecture(config: PretrainedConfig) -> type | None:
    """The class of the model, None for a config that belongs to no model of texts."""
    for auto in _AUTO_CLASSES:
        for one in (config, config.get_text_config()):
            found = auto._model_mapping.get(type(one), None)
            if found is not None:
                architecture: type = found[0] if isinstance(found, (tuple, list)) else found
                return architecture
    return None
