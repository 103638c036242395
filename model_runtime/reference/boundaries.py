"""The positions at which a model's computation changes, as its config declares them: windows, chunks, RoPE lengths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

# Every setting with one of these in its name counts: the next architecture calls its window something new.
_DECLARES = re.compile(r"window|chunk|floor_scale|original_max_position")
_OTHER_CHUNKS = re.compile(r"feed_forward|mamba|ssm|max_window_layers|_layers$|_pattern$")


@dataclass(frozen=True, slots=True)
class Boundary:
    """From position `tokens` on, something is computed differently. `settings` are the config's names for it."""

    tokens: int
    settings: tuple[str, ...]

    @property
    def what(self) -> str:
        return f"past {self.tokens:,} tokens ({', '.join(self.settings)})"


def boundaries_of(*configs: PretrainedConfig) -> tuple[Boundary, ...]:
    """Every boundary that the text parts of the configs declare, the nearest first."""
    found: dict[int, list[str]] = {}
    for config in configs:
        settings = config.get_text_config().to_dict()
        for setting, tokens in (*_declared(settings), *_dynamic_rope(settings)):
            names = found.setdefault(tokens, [])
            if setting not in names:
                names.append(setting)
    return tuple(Boundary(tokens, tuple(names)) for tokens, names in sorted(found.items()))


def _declared(settings: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, int]]:
    for name, value in settings.items():
        path = f"{above}{name}"
        if isinstance(value, Mapping):
            yield from _declared(value, f"{path}.")
        elif _DECLARES.search(str(name)) and not _OTHER_CHUNKS.search(str(name)) and _is_position(value):
            yield path, int(value)


def _dynamic_rope(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Dynamic RoPE changes its frequencies behind the trained context."""
    rope = settings.get("rope_parameters")
    kinds = (rope, *rope.values()) if isinstance(rope, Mapping) else ()
    trained = settings.get("max_position_embeddings")
    if any(isinstance(kind, Mapping) and kind.get("rope_type") == "dynamic" for kind in kinds) and _is_position(
        trained
    ):
        yield "max_position_embeddings", int(str(trained))


def _is_position(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 1
