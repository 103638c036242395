"""Weights of a checkpoint that its model does not use: named, or refused where the answers would lack them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from transformers import PreTrainedModel

from model_runtime.interface.errors import ModelLoadError

# What earlier versions of a family saved although it is computed from the config, and what other programs leave behind.
_COMPUTED = re.compile(
    r"(\.|^)(inv_freq|rotary_emb\.(cos|sin)_cached|position_ids|_extra_state|num_batches_tracked)$"
    r"|(\.|^)(attn|attention|self_attn|self_attention)\.(masked_)?bias$"  # the causal mask of GPT-2's relatives
)
_SCALES = re.compile(r"\.(k_scale|v_scale|kv_scale|q_scale|prob_scale|input_scale|activation_scale|output_scale)$")
_KINDS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"(^|\.)(vision|visual|vit|image|vpm|mm_|multi_modal|multimodal|resampler|aligner|embed_vision)"),
        "pictures",
    ),
    (re.compile(r"(^|\.)(audio|speech|sound|whisper|talker|token2wav|code2wav|embed_audio)"), "sound"),
    (re.compile(r"(^|\.)(mtp|nextn|medusa|eagle|draft)"), "drafts of several tokens"),
    (re.compile(r"(^|\.)(score|classifier|cls|pooler|v_head|value_head|reward)"), "judging texts"),
)
_LAYER = re.compile(r"^(.*\b(?:layers|h|blocks|block)\.)(\d+)\.")
_NAMED = 3


def unused_weights(name: str, model: PreTrainedModel, unused: Collection[str]) -> tuple[str, ...]:
    """What to say of a checkpoint's weights that the model `name` does not use, as sentences. `unused` are their names.
    Raises `ModelLoadError` for those that belong to a part of the model which is used without them: a dropped bias or
    norm makes every answer wrong."""
    found: dict[str, list[str]] = {}
    modules = {key for key, _ in model.named_modules()}
    drafting = _drafting_layers(model)
    for key in sorted(map(str, unused)):
        if _COMPUTED.search(key):
            continue
        if _SCALES.search(key):
            found.setdefault("quantised activations, which are not quantised here", []).append(key)
            continue
        layer = _layer(key)
        kind = next((kind for pattern, kind in _KINDS if pattern.search(key)), None)
        if layer in drafting:
            kind = "drafts of several tokens"
        if kind is None and (_is_of_a_layer(key, modules) or _parent(key) in modules or layer is not None):
            raise ModelLoadError(
                f"{name} has weights that its model ({type(model).__name__}) does not use, {_listed(key, unused)}: "
                "without them its answers would be wrong. Its config may name another model than the one it holds."
            )
        found.setdefault(kind or "", []).append(key)
    return tuple(_sentence(kind, keys) for kind, keys in found.items())


def _drafting_layers(model: PreTrainedModel) -> Collection[int]:
    """The layers behind the last one that guess further tokens, where the config has any."""
    config = model.config.get_text_config()
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    names = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers", "num_mtp_modules")
    extra = max((int(getattr(config, name, 0) or 0) for name in names), default=0)
    return range(layers, layers + extra)


def _layer(key: str) -> int | None:
    match = _LAYER.match(key)
    return int(match.group(2)) if match else None


def _is_of_a_layer(key: str, modules: Collection[str]) -> bool:
    match = _LAYER.match(key)
    return match is not None and match.group(0).removesuffix(".") in modules


def _parent(key: str) -> str:
    return key.rpartition(".")[0]


def _listed(first: str, unused: Iterable[str]) -> str:
    others = sum(1 for _ in unused) - 1
    return first if not others else f"{first} and {others:,} more"


def _sentence(kind: str, keys: list[str]) -> str:
    said = f"{len(keys):,} of the checkpoint's weights are not used"
    shown = ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
    return f"{said} ({shown}){f': they are for {kind}' if kind else ''}."
