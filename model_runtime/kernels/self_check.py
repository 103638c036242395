"""What a forward must show on this very device before answers rest on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from model_runtime.forward import Feed, PackedForward
from model_runtime.kv_cache import KVGeometry, KVSlab
from model_runtime.probe import logits_gap


def agrees_with_slabs(
    run: Callable[[list[Feed]], torch.Tensor],
    new_kv: Callable[[], KVSlab],
    model: PreTrainedModel,
    geometry: KVGeometry,
) -> bool:
    """Whether two conversations, read together and continued by two decode steps, get the logits that each gets alone
    from slabs and torch's own attention."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    ledgers = [[(7 * i + 3) % vocabulary for i in range(40)], [(11 * i + 5) % vocabulary for i in range(9)]]
    kvs = [new_kv() for _ in ledgers]
    run([Feed(kv, ids[:-2], 0) for kv, ids in zip(kvs, ledgers, strict=True)])
    for place in (-2, -1):
        found = run([Feed(kv, [ids[place]], 1) for kv, ids in zip(kvs, ledgers, strict=True)])
    slabs = PackedForward(model)
    expected = torch.cat([slabs.run([Feed(KVSlab(geometry), ids, 1)]) for ids in ledgers])
    for kv in kvs:
        kv.free()
    is_exact = all(t.dtype == torch.float32 for t in model.parameters() if t.is_floating_point())
    gap, limit = logits_gap(found, expected, is_exact and geometry.dtype == torch.float32)
    return gap <= limit
