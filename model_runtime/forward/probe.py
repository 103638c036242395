"""Checks at load that conversations may share a model's forward.

A model that accepts `set_attn_implementation` may still never call the attention function, hide keys in its mask only,
or choose its rotary frequencies from the largest position of the whole batch: packed, it would mix conversations or see
keys that it should not. So two packed sequences are compared with each alone through the model's own attention, and
again past every boundary: the ends of windows and chunks, and every number of the config that might be a position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from model_runtime.architecture.layer_settings import values_of
from model_runtime.architecture.rope import fixed_rope_tokens
from model_runtime.forward.attention import ATTENTION_NAME, PackedBatch, Span, carrying
from model_runtime.forward.attention_options import AttentionOptions
from model_runtime.forward.cpu_activations import float_activations
from model_runtime.forward.packed.packed_positions import cache_for, counts_positions
from model_runtime.forward.packed.rope_sets import rows_of, separate_rope_sets
from model_runtime.forward.probing.boundaries import boundaries_of
from model_runtime.forward.probing.compare import NotComparable, compare_turns, is_exact, is_steady, logits_gap
from model_runtime.forward.probing.record import record_layers
from model_runtime.forward.probing.shadow import length_for, small_copies
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab

_FAR_TOKENS = 6
_CANNOT_RUN = (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError)
_MOST_TOKENS = 2048  # of a model's own reading past its boundaries
_QUICK = 3e8  # weights times tokens: below a second on one core
_SLOW_CPU, _SLOW_GPU = 2e12, 1e15  # about a minute


@torch.inference_mode()
def probe_packing(
    model: PreTrainedModel, kv_dtype: torch.dtype, context_limit_tokens: int, step_tokens: int
) -> KVGeometry:
    """The geometry of the model's KV, after the model has passed the check, in which no activation is rounded to bytes.
    It is left with the packed attention set.

    Raises `ModelLoadError` with the reason when the model cannot be packed.
    """
    with float_activations(model):
        return _probe_packing(model, kv_dtype, context_limit_tokens, step_tokens)


def _probe_packing(
    model: PreTrainedModel, kv_dtype: torch.dtype, context_limit_tokens: int, step_tokens: int
) -> KVGeometry:
    if context_limit_tokens <= _FAR_TOKENS:
        raise ModelLoadError(f"{_name(model)} holds at most {context_limit_tokens} tokens, too few for an answer.")
    _refuse_changing_rope(model, context_limit_tokens)
    stock = _own_attention(model)
    device = next(model.parameters()).device
    recorded = record_layers(model)
    short_tokens = separate_rope_sets(model)
    if short_tokens is not None and context_limit_tokens <= short_tokens:
        short_tokens = None  # no conversation gets so long
    geometry = KVGeometry(tuple(recorded.shapes), kv_dtype, device, step_tokens, short_tokens)
    vocabulary = int(model.config.get_text_config().vocab_size)
    near = [(7 * i + 3) % vocabulary for i in range(_near_tokens(model, context_limit_tokens))]
    far = [(11 * i + 5) % vocabulary for i in range(_FAR_TOKENS)]
    # Without a cache, layers that count positions themselves begin at 0.
    far_start = 0 if counts_positions(model) else context_limit_tokens - _FAR_TOKENS

    model.set_attn_implementation(stock)
    try:
        expected = torch.stack([_alone(model, near, 0), _alone(model, far, far_start)])
    except _CANNOT_RUN as error:
        raise ModelLoadError(f"{_name(model)} cannot be run: {error}.") from error
    if not torch.isfinite(expected).all():
        raise ModelLoadError(
            f"{_name(model)} computes no valid numbers (NaN or infinity) in a first test: its file is damaged, or its "
            "weights do not fit this precision."
        )
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        found = _packed(model, geometry, near, far, far_start)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ModelLoadError(f"{_name(model)} cannot be packed with other conversations: {error}.") from error
    gap, limit = logits_gap(found, expected, is_exact(model))
    if not gap <= limit:
        raise ModelLoadError(
            f"{_name(model)} cannot share a forward between conversations: packed, its logits differ from its own "
            f"attention by {gap:.2g} standard deviations ({limit:g} allowed)."
        )
    _compare_past_boundaries(model, stock, geometry, recorded.options, context_limit_tokens)
    return geometry


def _own_attention(model: PreTrainedModel) -> str:
    """The name of the attention with which the model is compared: its own, and "eager" where a part of it has no other
    (Gemma 2 and gpt-oss, also within composite models)."""
    stock = str(model.config._attn_implementation)
    if stock not in (ATTENTION_NAME, "sdpa"):  # ours is set where an earlier engine has left it
        return stock
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    return "sdpa" if all(getattr(part, "_supports_sdpa", True) for part in parts) else "eager"


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__


def _refuse_changing_rope(model: PreTrainedModel, context_limit_tokens: int) -> None:
    config = model.config.get_text_config()
    fixed_tokens = fixed_rope_tokens(config)
    if fixed_tokens is not None and context_limit_tokens > fixed_tokens:
        raise ModelLoadError(
            f"{_name(model)} uses dynamic rotary positions, whose frequencies change with every token beyond "
            f"{fixed_tokens:,}. Start with --context-limit {fixed_tokens}, or less."
        )


def _compare_past_boundaries(
    model: PreTrainedModel, stock: str, geometry: KVGeometry, options: list[AttentionOptions], context_tokens: int
) -> None:
    """Compares packed with alone past every boundary: with the model itself if that is quick, else with a small copy,
    else with the model unless that takes too long. Raises `ModelLoadError`."""
    boundaries = boundaries_of(model.config.get_text_config(), options, context_tokens)
    if not boundaries:
        return
    weights = sum(parameter.numel() for parameter in model.parameters())
    own_tokens = min(context_tokens, boundaries[-1] + boundaries[-1] // 2 + 12)
    if own_tokens <= _MOST_TOKENS and weights * own_tokens <= _QUICK:
        _compare(model, stock, geometry, own_tokens)
        return
    for small in small_copies(model, boundaries):
        try:
            shapes = tuple(record_layers(small).shapes)
        except ModelLoadError:
            continue  # the class does not bear this copy
        try:
            compare_turns(small, stock, _geometry_of_copy(small, shapes), length_for(boundaries))
        except (NotComparable, *_CANNOT_RUN):
            continue
        except ModelLoadError:
            if is_steady(small, stock, length_for(boundaries)):
                raise
            continue
        return
    _compare_itself(model, stock, geometry, options, context_tokens)


def _geometry_of_copy(small: PreTrainedModel, shapes: tuple[LayerShape, ...]) -> KVGeometry:
    return KVGeometry(shapes, torch.float32, torch.device("cpu"), 64, separate_rope_sets(small))


def _compare_itself(
    model: PreTrainedModel, stock: str, geometry: KVGeometry, options: list[AttentionOptions], context_tokens: int
) -> None:
    """Compares packed with alone with the model itself, past what its config says are positions."""
    certain = boundaries_of(model.config.get_text_config(), options, context_tokens, is_certain=True)
    if not certain:
        return
    tokens = min(context_tokens, certain[-1] + certain[-1] // 2 + 12)
    weights = sum(parameter.numel() for parameter in model.parameters())
    if weights * tokens > (_SLOW_CPU if geometry.device.type == "cpu" else _SLOW_GPU):
        raise ModelLoadError(
            f"{_name(model)} may treat positions from {certain[0]:,} on otherwise, which cannot be checked in a short "
            f"time. Start with --context-limit {certain[0]}."
        )
    _compare(model, stock, geometry, tokens)


def _compare(model: PreTrainedModel, stock: str, geometry: KVGeometry, tokens: int) -> None:
    """`compare_turns`; raises only `ModelLoadError`."""
    try:
        compare_turns(model, stock, geometry, tokens)
    except NotComparable:
        raise ModelLoadError(
            f"{_name(model)} computes no valid numbers (NaN or infinity) within {tokens:,} tokens: its file is "
            "damaged, or its weights do not fit this precision."
        ) from None
    except _CANNOT_RUN as error:
        raise ModelLoadError(f"{_name(model)} cannot be packed with other conversations: {error}.") from error


def _near_tokens(model: PreTrainedModel, context_limit_tokens: int) -> int:
    """Long enough to exceed a small sliding window; exceeding a large one would cost a long read at every start."""
    window = max(size or 0 for size in values_of(model.config.get_text_config(), "sliding_window"))
    wanted = window + 5 if 0 < window <= 128 else 5
    return min(wanted, context_limit_tokens - 1)


def _alone(model: PreTrainedModel, ids: Sequence[int], start: int) -> torch.Tensor:
    """The last logits. From 0 on the model counts its positions itself, as some do in ways of their own (RoBERTa)."""
    device = next(model.parameters()).device
    positions = {"position_ids": torch.arange(start, start + len(ids), device=device)[None]} if start else {}
    logits = model(
        input_ids=torch.tensor([list(ids)], device=device), use_cache=False, logits_to_keep=1, **positions
    ).logits
    return torch.as_tensor(logits[0, -1]).float()


def _packed(
    model: PreTrainedModel, geometry: KVGeometry, near: Sequence[int], far: Sequence[int], far_start: int
) -> torch.Tensor:
    """The last logits of both sequences: all but the last tokens in one forward, then the last tokens together."""
    slabs = (KVSlab(geometry), KVSlab(geometry))
    for slab, ids, start in zip(slabs, (near, far), (0, far_start), strict=True):
        slab.use_rope_for(start + len(ids))
        slab.ensure_room(len(ids))
    logits = torch.empty(0)
    for part in (slice(None, -1), slice(-1, None)):
        row: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        for slab, all_ids, start in zip(slabs, (near, far), (0, far_start), strict=True):
            piece = list(all_ids[part])
            past = slab.length_tokens
            spans.append(Span(slab, len(row), len(piece), past))
            row.extend(piece)
            positions.extend(range(start + past, start + past + len(piece)))
        with carrying(PackedBatch(spans)), rows_of([(span.slab, span.tokens) for span in spans]):
            logits = model(
                input_ids=torch.tensor([row], device=geometry.device),
                position_ids=torch.tensor([positions], device=geometry.device),
                use_cache=False,
                **cache_for(torch.tensor(positions, device=geometry.device), counts_positions(model)),
            ).logits
        for slab, all_ids in zip(slabs, (near, far), strict=True):
            slab.appended(all_ids[part])
    return logits[0].float()
