"""Checks at load that conversations may share a model's forward.

A model that accepts `set_attn_implementation` may still never call the attention function (Mamba; also Falcon, BLOOM
and others, whose modules are replaced first), or choose its rotary frequencies from the largest position of the whole
batch (long RoPE): packed, it would mix conversations. So two packed sequences are compared with each alone through the
model's own attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from model_runtime.forward.attention import ATTENTION_NAME, PackedBatch, Span, carrying
from model_runtime.forward.attention_options import AttentionOptions
from model_runtime.forward.classic.replacements import replace_attention
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab

_FAR_TOKENS = 6


@dataclass(slots=True)
class RecordingBatch:
    """An `AttentionBatch` that records what each layer's attention asks for and returns zeros."""

    abort_if: Callable[[], bool] = lambda: False
    layers_seen: list[int] = field(default_factory=list)
    shapes: list[LayerShape] = field(default_factory=list)
    options: list[AttentionOptions] = field(default_factory=list)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: AttentionOptions
    ) -> torch.Tensor:
        """See `AttentionBatch`."""
        self.shapes.append(LayerShape(kv_heads=key.shape[1], key_dim=key.shape[3], value_dim=value.shape[3]))
        self.options.append(options)
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3]))


@torch.inference_mode()
def probe_packing(
    model: PreTrainedModel, kv_dtype: torch.dtype, context_limit_tokens: int, step_tokens: int
) -> KVGeometry:
    """The geometry of the model's KV, after the model has passed the check. It is left with the packed attention set.

    Raises `ModelLoadError` with the reason when the model cannot be packed.
    """
    if context_limit_tokens <= _FAR_TOKENS:
        raise ModelLoadError(f"{_name(model)} holds at most {context_limit_tokens} tokens, too few for an answer.")
    _refuse_batch_dependent_rope(model)
    replace_attention(model)
    stock = str(model.config._attn_implementation)
    if stock == ATTENTION_NAME:
        stock = "sdpa"  # an earlier engine has left ours set
    device = next(model.parameters()).device
    geometry = KVGeometry(tuple(record_layers(model).shapes), kv_dtype, device, step_tokens)
    vocabulary = int(model.config.get_text_config().vocab_size)
    near = [(7 * i + 3) % vocabulary for i in range(_near_tokens(model, context_limit_tokens))]
    far = [(11 * i + 5) % vocabulary for i in range(_FAR_TOKENS)]
    far_start = context_limit_tokens - _FAR_TOKENS

    model.set_attn_implementation(stock)
    try:
        expected = torch.stack([_alone(model, near, 0), _alone(model, far, far_start)])
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError) as error:
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
    gap, limit = logits_gap(found, expected, _is_exact(model))
    if not gap <= limit:
        raise ModelLoadError(
            f"{_name(model)} cannot share a forward between conversations: packed, its logits differ from its own "
            f"attention by {gap:.2g} standard deviations ({limit:g} allowed)."
        )
    return geometry


def logits_gap(found: torch.Tensor, expected: torch.Tensor, is_exact: bool) -> tuple[float, float]:
    """The difference between two sets of logits in standard deviations, and its limit: the largest difference for exact
    models, else the root mean square. In a large vocabulary the largest rounding error of bfloat16 proves nothing
    (measured: 0.33 among 128,256 logits after 32 layers of random weights); a wrong computation is off by about 1."""
    difference = (found - expected) / expected.std()
    return (float(difference.abs().max()), 1e-3) if is_exact else (float(difference.square().mean().sqrt()), 0.15)


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__


def _refuse_batch_dependent_rope(model: PreTrainedModel) -> None:
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    layers = rope.values() if rope and all(isinstance(value, dict) for value in rope.values()) else [rope]
    for layer in layers:
        kind = layer.get("rope_type", "default")
        if kind in ("longrope", "dynamic"):
            raise ModelLoadError(
                f"{_name(model)} uses {kind} rotary positions, whose frequencies depend on the longest position in the "
                "batch; Keepwarm cannot pack such a model yet."
            )


@torch.inference_mode()
def record_layers(model: PreTrainedModel) -> RecordingBatch:
    """What the layers' attention asks for, in a forward of two tokens. It is left with the packed attention set. Raises
    `ModelLoadError` for a model that cannot be run through it."""
    batch = RecordingBatch()
    device = next(model.parameters()).device
    try:
        model.set_attn_implementation(ATTENTION_NAME)
        with carrying(batch):
            model(input_ids=torch.tensor([[1, 2]], device=device), use_cache=False)
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise ModelLoadError(f"{_name(model)} cannot be run through Keepwarm's attention: {error}.") from error
    expected = int(model.config.get_text_config().num_hidden_layers)
    if batch.layers_seen != list(range(expected)):
        called = f"{len(batch.layers_seen)} times" if batch.layers_seen else "never"
        raise ModelLoadError(
            f"{_name(model)} has {expected} layers but called the attention function {called}: its layers keep state "
            "that Keepwarm cannot hold yet. Llama-, Qwen-, Mistral-, Gemma-3- and GPTBigCode-like models work."
        )
    return batch


def _near_tokens(model: PreTrainedModel, context_limit_tokens: int) -> int:
    """Long enough to exceed a small sliding window; exceeding a large one would cost a long read at every start."""
    window = getattr(model.config.get_text_config(), "sliding_window", None) or 0
    wanted = window + 5 if 0 < window <= 128 else 5
    return min(wanted, context_limit_tokens - 1)


def _alone(model: PreTrainedModel, ids: Sequence[int], start: int) -> torch.Tensor:
    device = next(model.parameters()).device
    positions = torch.arange(start, start + len(ids), device=device)[None]
    logits = model(
        input_ids=torch.tensor([list(ids)], device=device), position_ids=positions, use_cache=False, logits_to_keep=1
    ).logits
    return torch.as_tensor(logits[0, -1]).float()


def _packed(
    model: PreTrainedModel, geometry: KVGeometry, near: Sequence[int], far: Sequence[int], far_start: int
) -> torch.Tensor:
    """The last logits of both sequences: all but the last tokens in one forward, then the last tokens together."""
    slabs = (KVSlab(geometry), KVSlab(geometry))
    for slab, ids in zip(slabs, (near, far), strict=True):
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
        with carrying(PackedBatch(spans)):
            logits = model(
                input_ids=torch.tensor([row], device=geometry.device),
                position_ids=torch.tensor([positions], device=geometry.device),
                use_cache=False,
            ).logits
        for slab, all_ids in zip(slabs, (near, far), strict=True):
            slab.appended(all_ids[part])
    return logits[0].float()


def _is_exact(model: PreTrainedModel) -> bool:
    """Whether all weights are float32, so that only the order of additions can differ."""
    tensors = [*model.parameters(), *model.buffers()]
    return all(t.dtype == torch.float32 for t in tensors if t.dtype not in (torch.int64, torch.int32, torch.bool))
