"""Compares the logits of packed conversations with those of each alone, through the model's own attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from model_runtime.forward.transformers_forward import Feed, PackedForward
from model_runtime.interface.errors import ModelLoadError
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.slab import KVSlab

_TURN_TOKENS = 9
_MOST_LOGITS = 1 << 25  # of each side: 128 MiB of float32. A large vocabulary's logits of 1,500 tokens are 1.6 GB
_LEAST_ROWS = 2 * _TURN_TOKENS
_LOWEST = -3e4  # no model computes such a logit


class NotComparable(Exception):
    """The model's own attention gives no valid numbers."""


def comparable(found: torch.Tensor, expected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets of logits `(..., vocabulary)` without the ids that the model excludes with the lowest number there is,
    as Chameleon does with those of pictures: measured with it, every other difference would be none. What is no number
    stays."""
    ids = (~(expected <= _LOWEST)).reshape(-1, expected.shape[-1]).all(dim=0)
    return found[..., ids], expected[..., ids]


def logits_gap(found: torch.Tensor, expected: torch.Tensor, is_exact: bool) -> tuple[float, float]:
    """The difference between two sets of logits in standard deviations, and its limit: the largest difference for exact
    models, else the root mean square. In a large vocabulary the largest rounding error of bfloat16 proves nothing
    (measured: 0.33 among 128,256 logits after 32 layers of random weights); a wrong computation is off by about 1."""
    found, expected = comparable(found, expected)
    difference = (found - expected) / expected.std()
    return (float(difference.abs().max()), 1e-3) if is_exact else (float(difference.square().mean().sqrt()), 0.15)


def is_exact(model: PreTrainedModel) -> bool:
    """Whether all weights are float32, so that only the order of additions can differ."""
    tensors = [*model.parameters(), *model.buffers()]
    return all(t.dtype == torch.float32 for t in tensors if t.dtype not in (torch.int64, torch.int32, torch.bool))


@torch.inference_mode()
def is_steady(model: PreTrainedModel, stock: str, tokens: int) -> bool:
    """Whether a change of its embeddings by a millionth changes its logits as little: random weights may be chaotic,
    and then no two orders of summation agree. The embeddings stay changed."""
    model.set_attn_implementation(stock)
    weight = model.get_input_embeddings().weight
    ids = torch.tensor([[(7 * i + 3) % weight.shape[0] for i in range(tokens)]], device=weight.device)
    before = model(input_ids=ids, use_cache=False).logits[0].float()
    weight.mul_(1 + 1e-6 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).to(weight))
    gap, limit = logits_gap(model(input_ids=ids, use_cache=False).logits[0].float(), before, is_exact=True)
    return gap <= limit / 4


@torch.inference_mode()
def compare_turns(model: PreTrainedModel, stock: str, geometry: KVGeometry, longest_tokens: int) -> None:
    """Two conversations of different lengths, `longest_tokens` and a third of it, share their forwards: each is read in
    two turns, and continued by two decode steps. `stock` is the model's own attention. Raises `ModelLoadError` if any
    position's logits differ from those of one read alone, `NotComparable` if these are no numbers. Leaves the packed
    attention set."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    lengths = (longest_tokens, max(4, longest_tokens // 3))
    ledgers = [[(7 * i + i * i // 3 + 5 * n + 3) % vocabulary for i in range(k)] for n, k in enumerate(lengths)]
    model.set_attn_implementation(stock)
    device = geometry.device
    rows = max(_LEAST_ROWS, _MOST_LOGITS // vocabulary)
    expected = [
        model(input_ids=torch.tensor([ids], device=device), use_cache=False, logits_to_keep=rows)
        .logits[0, -rows:]
        .float()
        for ids in ledgers
    ]
    if not all(bool(torch.isfinite(logits).all()) and float(logits.std()) > 0 for logits in expected):
        raise NotComparable
    found = _packed(PackedForward(model), geometry, ledgers, rows)
    gap, limit = logits_gap(torch.cat(found), torch.cat(expected), is_exact(model))
    if not gap <= limit:
        raise ModelLoadError(
            f"{type(model).__name__} cannot share a forward between conversations: packed, its logits differ from its "
            f"own attention by {gap:.2g} standard deviations within {longest_tokens:,} tokens ({limit:g} allowed)."
        )


def _packed(
    forward: PackedForward, geometry: KVGeometry, ledgers: Sequence[Sequence[int]], rows: int
) -> list[torch.Tensor]:
    """The logits of each ledger's last `rows` tokens, read in two turns and two steps."""
    kvs = [KVSlab(geometry) for _ in ledgers]
    for kv, ids in zip(kvs, ledgers, strict=True):
        kv.use_rope_for(len(ids))
    found: list[list[torch.Tensor]] = [[] for _ in ledgers]
    ends = [(max(1, len(ids) - 2 - _TURN_TOKENS), len(ids) - 2, len(ids) - 1, len(ids)) for ids in ledgers]
    for turn in zip(*ends, strict=True):
        parts = [ids[kv.length_tokens : end] for kv, ids, end in zip(kvs, ledgers, turn, strict=True)]
        wanted = [
            max(0, min(len(part), rows - len(ids) + end)) for part, ids, end in zip(parts, ledgers, turn, strict=True)
        ]
        feeds = [Feed(kv, part, many) for kv, part, many in zip(kvs, parts, wanted, strict=True) if part]
        logits = torch.split(forward.run(feeds), [feed.logit_rows for feed in feeds])
        for own, read in zip((own for own, part in zip(found, parts, strict=True) if part), logits, strict=True):
            own.append(read)
    for kv in kvs:
        kv.free()
    return [torch.cat(rows) for rows in found]
