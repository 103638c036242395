"""Memory that tiles share."""

from __future__ import annotations

import gc
import sys

import psutil
import pytest
import torch

from model_runtime.native.tile_memory import SHARED_BYTES, TileMemory

MIB = 1024**2


def test_tensors_are_zeros_of_their_own() -> None:
    memory = TileMemory()
    sizes = [((3, 5, 16), torch.int32), ((7,), torch.uint8), ((2, 9), torch.bfloat16), ((5 * MIB,), torch.int8)]
    tensors = [memory.zeros(shape, dtype) for shape, dtype in sizes * 3]
    for number, tensor in enumerate(tensors):
        assert (tuple(tensor.shape), tensor.dtype) == sizes[number % 4]
        assert not tensor.any()
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(number + 1)
    assert all(bool((tensor == number + 1).all()) for number, tensor in enumerate(tensors))
    assert memory.zeros((0, 4), torch.float32).shape == (0, 4)


@pytest.mark.skipif(sys.platform != "linux", reason="mappings are shared on Linux")
def test_a_mapping_takes_what_was_written_and_goes_with_its_last_tensor() -> None:
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    memory = TileMemory()
    tensors = [memory.zeros((3 * MIB,), torch.uint8) for _ in range(3 * SHARED_BYTES // (4 * 3 * MIB))]
    small = memory.zeros((64,), torch.uint8)
    assert process.memory_info().rss - before < 12 * MIB
    for tensor in tensors:
        tensor.fill_(1)
    held = 3 * MIB * len(tensors)
    assert held - MIB <= process.memory_info().rss - before < held + 12 * MIB
    del tensors, tensor
    gc.collect()
    assert small.sum() == 0
    del small
    gc.collect()
    assert process.memory_info().rss - before < 12 * MIB
    assert memory.zeros((5,), torch.float32).sum() == 0
