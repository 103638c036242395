"""Checks that a forward computes correct results on this device before it is used."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from model_runtime.forward.gpu.arena_forward import ArenaForward
from model_runtime.forward.probing.compare import logits_gap
from model_runtime.forward.transformers_forward import Feed, PackedForward
from model_runtime.kv.geometry import KVGeometry
from model_runtime.kv.slab import KVSlab

_LONG_TOKENS = 600  # long enough that the attention of a short turn after it is cut into pieces
_TURN_TOKENS = 20


class SelfCheck:
    """Two conversations, read together and continued by two decode steps, and a short turn after a longer history. The
    expected logits are those that each conversation gets alone from slabs and torch's own attention. `most_tokens`
    bounds the longer history."""

    def __init__(self, model: PreTrainedModel, geometry: KVGeometry, most_tokens: int) -> None:
        vocabulary = int(model.config.get_text_config().vocab_size)
        self._pair = [[(7 * i + 3) % vocabulary for i in range(40)], [(11 * i + 5) % vocabulary for i in range(9)]]
        self._long = [(13 * i + i * i + 1) % vocabulary for i in range(min(_LONG_TOKENS, most_tokens))]
        slabs = PackedForward(model)
        self._pair_logits = torch.cat([slabs.run([Feed(KVSlab(geometry), ids, 1)]) for ids in self._pair])
        self._long_logits = slabs.run([Feed(KVSlab(geometry), self._long, 1)])
        weights_are_exact = all(t.dtype == torch.float32 for t in model.parameters() if t.is_floating_point())
        self._is_exact = weights_are_exact and geometry.dtype == torch.float32

    def passes(self, forward: ArenaForward) -> bool:
        """Whether this forward computes all expected logits."""
        return self.decodes_right(forward) and self.reads_turns_right(forward)

    def decodes_right(self, forward: ArenaForward) -> bool:
        """Checks only the two conversations."""
        return self._agree(self._decoded(forward), self._pair_logits)

    def reads_turns_right(self, forward: ArenaForward) -> bool:
        """Checks only the short turn, launched and, once recorded, replayed."""
        return all(self._agree(found, self._long_logits) for found in self._turned(forward))

    def _agree(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        gap, limit = logits_gap(found, expected, self._is_exact)
        return gap <= limit

    def _decoded(self, forward: ArenaForward) -> torch.Tensor:
        kvs = [forward.arena.new_kv() for _ in self._pair]
        for kv, ids in zip(kvs, self._pair, strict=True):
            kv.use_rope_for(len(ids))
        forward.run([Feed(kv, ids[:-2], 0) for kv, ids in zip(kvs, self._pair, strict=True)])
        for place in (-2, -1):
            found = forward.run([Feed(kv, [ids[place]], 1) for kv, ids in zip(kvs, self._pair, strict=True)])
        for kv in kvs:
            kv.free()
        return found

    def _turned(self, forward: ArenaForward) -> list[torch.Tensor]:
        kv, begin = forward.arena.new_kv(), max(1, len(self._long) - _TURN_TOKENS)
        kv.use_rope_for(len(self._long))
        forward.run([Feed(kv, self._long[:begin], 0)])
        found = []
        for _ in range(2):
            found.append(forward.run([Feed(kv, self._long[begin:], 1)]).clone())
            kv.crop(begin)
            forward.record_waiting()
        kv.free()
        return found
