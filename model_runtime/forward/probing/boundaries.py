"""Which positions a model treats otherwise than those before: ends of windows and chunks, and numbers in its config
that might be such positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig

from model_runtime.forward.attention_options import AttentionOptions

# Whole numbers of configs that are widths, counts or ids. Every other one might be a position: what is not known is
# compared, never assumed.
_WIDTHS = ("size", "dim", "rank", "width", "inner", "embd", "proj", "hidden", "state")
_COUNTS = ("num_", "n_", "_num", "experts", "layers", "heads", "groups", "depth", "top_k", "topk", "_per_", "every")
_IDS = ("token_id", "token_ids", "token_index", "id2label", "pretraining", "seed", "version")
_STATES = (
    "mamba",
    "ssm",
)  # of layers with a state, which `check_family` refuses: a config names them without having any
_OTHER_PARTS = ("vision", "image", "video", "audio", "speech")  # whose settings no text depends on
_POSITIONS = ("window", "chunk", "position", "floor", "context", "length", "max_seq")


def might_be_position(name: str) -> bool:
    """Whether a whole number of this name in a config might be a position or a distance between positions."""
    if any(part in name.lower() for part in _STATES):
        return False
    return _is_said(name) or not any(part in name.lower() for part in (*_WIDTHS, *_COUNTS, *_IDS))


def numbers_of(
    config: Mapping[Any, Any], standard_names: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Every whole number from 2 on that might be a position, with the keys that lead to it. Of lists, which hold one
    number for each layer, only those whose names say that they are, and of parts for pictures and sound none.
    `standard_names` translates a family's own names
    (MPT's d_model is hidden_size)."""
    for key, value in config.items():
        name = str(key)
        if isinstance(value, Mapping) and any(part in name for part in _OTHER_PARTS):
            continue
        if isinstance(value, Mapping):
            yield from (((name, *path), number) for path, number in numbers_of(value))
        elif isinstance(value, list) and _is_said(name):
            yield from (
                ((name, place), int(one)) for place, one in enumerate(value) if _is_whole(one, True) and one >= 2
            )
        elif (
            _is_whole(value, may_be_float=_is_said(name))
            and value >= 2
            and might_be_position(standard_names.get(name, name))
        ):
            yield (name,), int(value)


def own_names(config: PreTrainedConfig) -> dict[str, str]:
    """A family's own names of settings, and the standard ones."""
    return {own: standard for standard, own in config.attribute_map.items()}


def _is_whole(value: Any, may_be_float: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float) if may_be_float else int):
        return False
    return float(value).is_integer()


def _is_said(name: str) -> bool:
    return any(part in name.lower() for part in _POSITIONS)


def _says_position(path: tuple[str | int, ...]) -> bool:
    return _is_said(next(str(key) for key in reversed(path) if isinstance(key, str)))


def boundaries_of(
    config: PreTrainedConfig, options: list[AttentionOptions], context_tokens: int, is_certain: bool = False
) -> list[int]:
    """The boundaries below the context's end, in order; if `is_certain` only numbers whose names say that they are."""
    numbers = numbers_of(config.to_dict(), own_names(config))
    found = {number for path, number in numbers if not is_certain or _says_position(path)}
    found |= {size for used in options for size in (used.window, used.chunk) if size is not None}
    return sorted(number for number in found if number < context_tokens)
