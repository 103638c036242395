"""Settings of a config that may differ from layer to layer, as the widths of heads do in Gemma 4."""

from __future__ import annotations

from typing import Any


def values_of(config: Any, setting: str) -> list[Any]:
    """The setting's value for each layer, or the one value of all of them; `[None]` for a setting that the config does
    not have. A text config of transformers raises for a setting that differs, rather than answer for one layer."""
    if differs_by_layer(config, setting):
        return [getattr(layer, setting, None) for layer in config.per_layer_config]
    return [getattr(config, setting, None)]


def differs_by_layer(config: Any, setting: str | None = None) -> bool:
    """Whether layers have values of their own for the setting; for any, without one."""
    if not getattr(config, "is_heterogeneous", False):
        return False
    return setting is None or setting in (config.per_layer_attributes or ())
