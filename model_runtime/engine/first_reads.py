"""Times a few reads at the start, so that the first estimates are measured on this machine."""

from __future__ import annotations

import time

from model_runtime.forward.runtime import Forward, KVPlace
from model_runtime.forward.transformers_forward import Feed
from model_runtime.kv.slab import hold_zeros
from model_runtime.read_speed import ReadSpeed


def measure_reading(forward: Forward, place: KVPlace, limit_tokens: int, speed: ReadSpeed) -> None:
    """Times a few short reads, so that the first estimate is measured on this machine. The first read only warms up."""
    limit_tokens = min(limit_tokens, place.capacity_tokens or limit_tokens)
    depth = min(2048, limit_tokens // 2)
    slab = place.new_kv()
    for start, tokens in ((0, 16), (0, 16), (0, min(256, limit_tokens // 2)), (depth, 16)):
        slab.free()
        hold_zeros(slab, start, start + tokens)
        begin = time.perf_counter()
        forward.run([Feed(slab, [1] * tokens, 1)]).argmax().item()  # waits for the device
        speed.observe(start, start + tokens, time.perf_counter() - begin)
    slab.free()
