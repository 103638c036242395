"""Memory of its own: it grows in place, is given back when no tensor points into it, and says so when there is none."""

from __future__ import annotations

import gc
import subprocess
import sys

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.engine.out_of_memory import translated
from model_runtime.interface.errors import DeviceOutOfMemory
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.mapped_memory import CAN_GROW, new_memory
from model_runtime.kv.slab import KVSlab

pytestmark = pytest.mark.skipif(not CAN_GROW, reason="mappings grow on Linux alone")

MIB = 1024 * 1024
LARGE = KVGeometry((LayerShape(3, 64, 64),) * 8, torch.float16, torch.device("cpu"))
NOISE_BYTES = 6 * MIB


def resident_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def filled(slab: KVSlab, tokens: int) -> KVSlab:
    slab.ensure_room(tokens)
    slab.appended(range(slab.length_tokens, tokens))
    for tensor in (*slab.keys, *slab.values):
        tensor.fill_(1)
    return slab


def test_a_freed_slab_is_the_machines_again() -> None:
    """Whatever lives beside it: what a C library's heap holds between two others stays there."""
    slabs = [filled(KVSlab(LARGE), 1024) for _ in range(20)]
    before = resident_bytes()
    held = sum(slab.allocated_bytes for slab in slabs[::2])
    assert held > 8 * NOISE_BYTES
    for slab in slabs[::2]:
        slab.free()
    assert before - resident_bytes() > held - NOISE_BYTES
    del slabs, slab
    assert before - resident_bytes() > 2 * held - NOISE_BYTES


def test_growing_needs_no_second_copy() -> None:
    slab = filled(KVSlab(LARGE), 8192)
    before = resident_bytes()
    filled(slab, 8192 + 512)
    assert resident_bytes() - before < slab.allocated_bytes // 4
    assert slab.allocated_bytes > 48 * MIB


def test_segments_go_back_too() -> None:
    before = resident_bytes()
    data = new_memory(32 * MIB).fill_(1)
    assert resident_bytes() - before > 30 * MIB
    del data
    assert resident_bytes() - before < NOISE_BYTES


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.booleans())
def test_rows_stay_while_it_grows_under_a_view(steps: list[int], looks: bool) -> None:
    geometry = KVGeometry((LayerShape(2, 3, 5), LayerShape(1, 4, 2)), torch.float32, torch.device("cpu"), step_tokens=4)
    slab, seen = KVSlab(geometry), []
    for count in steps:
        start = slab.length_tokens
        slab.ensure_room(start + count)
        for number, tensor in enumerate((*slab.keys, *slab.values)):
            places = torch.arange(start, start + count, dtype=torch.float32)[None, :, None]
            heads = torch.arange(tensor.shape[0])[:, None, None] * 10_000
            tensor[:, start : start + count] = places + heads + number * 100_000
        slab.appended([0] * count)
        if looks:
            seen.append((slab.length_tokens, slab.keys[1][0, : slab.length_tokens, 0]))
    for number, tensor in enumerate((*slab.keys, *slab.values)):
        for head in range(tensor.shape[0]):
            expected = torch.arange(slab.length_tokens) + head * 10_000 + number * 100_000
            assert torch.equal(tensor[head, : slab.length_tokens, -1], expected.float())
    for length, rows in seen:
        assert torch.equal(rows, torch.arange(length) + 100_000.0)


REFUSED = """
import resource, sys, torch
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab
slab = KVSlab(KVGeometry((LayerShape(3, 64, 64),) * 8, torch.float16, torch.device("cpu")))
slab.ensure_room(256)
slab.appended(range(200))
slab.keys[3].fill_(7)
virtual = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (virtual + 2**28, virtual + 2**28))
for fresh in (slab, KVSlab(slab._geometry)):
    try:
        fresh.ensure_room(1_000_000)
    except torch.OutOfMemoryError as error:
        print(error)
assert slab.capacity_tokens == 256 and slab.keys[3].shape == (3, 256, 64) and bool((slab.keys[3] == 7).all())
slab.ensure_room(512)
assert bool((slab.keys[3][:, :200] == 7).all())
"""


def test_refused_memory_changes_nothing_and_is_the_usual_sentence() -> None:
    child = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        told = translated(torch.OutOfMemoryError(line))
        assert isinstance(told, DeviceOutOfMemory)
        assert str(told).startswith("The device ran out of memory for this answer.")
