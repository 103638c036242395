"""Rows of one KV copied into another, on the device: conversations that begin alike are read once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from model_runtime.kv.slab import KVSlab


@torch.inference_mode()  # the slabs' tensors are the forward's, which nothing else may write to
def copy_beginning(source: KVSlab, target: KVSlab, ids: Sequence[int], least_tokens: int) -> tuple[int, int]:
    """Makes `target` hold of `ids` what `source` does, where that is at least `least_tokens` more than it has of them.

    Returns from where to where rows were copied, (0, 0) for none; only then was `target` cropped. On the engine thread.
    Raises what torch raises when there is no memory; `target` then holds a whole prefix of `ids`.
    """
    end = source.common_prefix_tokens(ids)
    start = target.common_prefix_tokens(ids[:end])
    if source is target or end - start < least_tokens:
        return 0, 0
    target.crop(start)
    target.ensure_room(end)
    for mine, theirs in zip((*target.keys, *target.values), (*source.keys, *source.values), strict=True):
        mine[:, start:end].copy_(theirs[:, start:end])
    target.appended(ids[start:end])
    return start, end
