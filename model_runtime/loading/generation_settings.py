"""What a checkpoint's generation config asks for: each setting is honoured, changes nothing, or is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.checks.config_file import read_config

GENERATION_FILE = "generation_config.json"
# Each becomes the default of an answer's own setting of that name.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
# Honoured in another way: `do_sample` false is temperature 0; the others end an answer.
OTHER_HONOURED = frozenset({"do_sample", "stop_strings", "eos_token_id"})
# How transformers computes, what it returns, and ids that only a padded or an encoder's batch needs.
WITHOUT_EFFECT = frozenset(
    {"assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind"}
    | {"bos_token_id", "cache_config", "cache_implementation", "compile_config", "continuous_batching_config"}
    | {"decoder_start_token_id", "disable_compile", "is_assistant", "low_memory", "max_cache_len"}
    | {"max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "output_attentions"}
    | {"output_hidden_states", "output_logits", "output_scores", "pad_token_id", "prefill_chunk_size"}
    | {"prompt_lookup_num_tokens", "return_dict_in_generate", "return_legacy_cache", "speculation_type"}
    | {"target_lookbehind", "transformers_version", "use_cache", "use_mtp", "renormalize_logits"}
    | {"remove_invalid_values", "_from_model_config", "_commit_hash", "_original_object_hash", "generation_kwargs"}
)
# Values with which a setting that is not done here asks for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "diversity_penalty": (0,),
    "early_stopping": (False,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "length_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "token_healing": (False,),
    "typical_p": (1,),
}
# With one beam they mean nothing.
_OF_BEAMS = ("early_stopping", "length_penalty", "diversity_penalty", "num_beam_groups")
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """`sampling` are the defaults of an answer; `notes` are sentences about what is asked for and not done."""

    sampling: SamplingParams
    notes: tuple[str, ...]


def generation_settings(directory: Path, model: PreTrainedModel) -> GenerationSettings:
    """Reads the checkpoint's generation config, or what transformers derives from its config. Raises `ModelLoadError`
    for a file that is no JSON: transformers would go on without it."""
    try:
        asked: Mapping[str, Any] = read_config(directory / GENERATION_FILE)
    except FileNotFoundError:
        own = getattr(model, "generation_config", None)  # classes that generate no text have none
        asked = {} if own is None else vars(own)
    return settings_of({name: value for name, value in asked.items() if value is not None})


def settings_of(asked: Mapping[str, Any]) -> GenerationSettings:
    """The settings for a generation config without its nulls."""
    notes: list[str] = []
    sampling = SamplingParams()
    for name, value in _sampling_of(asked, notes):
        try:
            sampling = replace(sampling, **{name: value})
        except (TypeError, ValueError):
            notes.append(_named(name, asked.get(name, value), "which is out of range: it is ignored"))
    for name, value in asked.items():
        if name in SAMPLING or name in OTHER_HONOURED or name in WITHOUT_EFFECT or _asks_for_nothing(asked, name):
            continue
        if name == "max_length":
            notes.append(_named(name, value, "which is not used: --context-limit bounds a conversation"))
        else:
            notes.append(_named(name, value, "which Keepwarm does not do: it is ignored"))
    return GenerationSettings(sampling, tuple(notes))


def _sampling_of(asked: Mapping[str, Any], notes: list[str]) -> Iterator[tuple[str, Any]]:
    fallback = SamplingParams()
    for name in SAMPLING:
        if name not in asked:
            continue
        value, kind = asked[name], type(getattr(fallback, name))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or kind(value) != value:
            notes.append(_named(name, value, "which is no such number: it is ignored"))
        else:
            yield name, kind(value)
    if asked.get("do_sample") is False:
        yield "temperature", 0.0
    stops = asked.get("stop_strings")
    if stops is not None:
        listed = (stops,) if isinstance(stops, str) else tuple(stops) if isinstance(stops, list) else (stops,)
        if all(isinstance(stop, str) for stop in listed):
            yield "stop_strings", listed
        else:
            notes.append(_named("stop_strings", stops, "which are no texts: they are ignored"))


def _asks_for_nothing(asked: Mapping[str, Any], name: str) -> bool:
    value = asked[name]
    if value in ([], {}, "") or value is False:
        return True
    if name in _OF_BEAMS and asked.get("num_beams", 1) == 1 and name != "num_beam_groups":
        return True
    return any(value == neutral and not isinstance(value, bool) for neutral in NEUTRAL.get(name, ()))


def _named(name: str, value: Any, what: str) -> str:
    shown = str(value)
    shown = shown if len(shown) <= _SHOWN_CHARS else f"{shown[:_SHOWN_CHARS]}…"
    return f"The generation config asks for {name} = {shown}, {what}."
