"""Attention of one conversation written out in torch: every option, any device. SDPA computes neither soft-capping nor
sinks, and would need a mask per head for ALiBi."""

from __future__ import annotations

import math

import torch

from model_runtime.forward.attention_options import AttentionOptions

_MOST_SCORES = 1 << 24  # 64 MiB of float32 scores at a time


def dense_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, options: AttentionOptions
) -> torch.Tensor:
    """`query (heads, t, dim)` of the last t positions against `keys (kv_heads, n, dim)` and `values (kv_heads, n,
    value_dim)`, from position 0 on -> `(heads, t, value_dim)`. Scores and softmax are float32."""
    tokens, total = query.shape[1], keys.shape[1]
    step = max(1, _MOST_SCORES // (query.shape[0] * total))
    parts = []
    for start in range(0, tokens, step):
        rows = query[:, start : start + step]
        position = total - tokens + start
        first, end = options.first_key(position), position + rows.shape[1]
        parts.append(_attend_rows(rows, keys[:, first:end], values[:, first:end], first, options))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def causal_mask(
    tokens: int, past_tokens: int, options: AttentionOptions, like: torch.Tensor, first_key: int = 0
) -> torch.Tensor:
    """`(tokens, past + tokens - first_key)` in `like`'s dtype: 0 where query row i (position `past + i`) may see key
    `first_key + j`, -inf elsewhere."""
    total = past_tokens + tokens - first_key
    mask = like.new_full((tokens, total), -math.inf).triu_(past_tokens - first_key + 1)
    end = past_tokens + tokens
    keys = torch.arange(first_key, end, device=like.device)[None]
    rows = torch.arange(past_tokens, end, device=like.device)[:, None]
    if options.window is not None and options.window < end:
        mask.masked_fill_(keys <= rows - options.window, -math.inf)
    if options.chunk is not None and options.chunk < end:
        mask.masked_fill_(keys < rows // options.chunk * options.chunk, -math.inf)
    return mask


def _attend_rows(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, first_key: int, options: AttentionOptions
) -> torch.Tensor:
    """Like `dense_attention`, for rows whose scores fit into memory at once and whose keys begin at `first_key`. Query
    heads that share a key head are folded into its rows, so that keys are not repeated."""
    heads, tokens, dim = query.shape
    kv_heads, total = keys.shape[:2]
    scale = dim**-0.5 if options.scale is None else options.scale
    scores = torch.matmul(query.reshape(kv_heads, -1, dim), keys.transpose(1, 2)).float().mul_(scale)
    if options.softcap is not None:
        scores = scores.div_(options.softcap).tanh_().mul_(options.softcap)
    scores = scores.view(heads, tokens, total)
    end = first_key + total
    if options.slopes is not None:
        scores += options.slopes.float()[:, None, None] * distances(tokens, end, first_key, scores.device)
    if options.key_biases is not None:
        scores += options.key_biases[:, None, first_key:end]
    if tokens > 1:
        scores += causal_mask(tokens, end - tokens, options, scores, first_key)
    if options.sinks is not None:
        sums = torch.logaddexp(scores.logsumexp(-1), options.sinks.float()[:, None])
        weights = scores.sub_(sums[:, :, None]).exp_()
    else:
        weights = torch.softmax(scores, -1)
    attended = torch.matmul(weights.to(values.dtype).view(kv_heads, -1, total), values)
    return attended.view(heads, tokens, values.shape[2])


def distances(tokens: int, end: int, first_key: int, device: torch.device) -> torch.Tensor:
    """float32 `(tokens, end - first_key)`: key position minus query position, for the last `tokens` positions before
    `end` and the keys from `first_key` on."""
    keys = torch.arange(first_key, end, device=device)
    return (keys[None] - torch.arange(end - tokens, end, device=device)[:, None]).float()
