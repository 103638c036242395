"""Rows leave the arena and come back bit for bit through the pool, in the layout the files have."""

from __future__ import annotations

import pytest
import torch

from model_runtime.forward.arena.arena import Arena, ArenaKV
from model_runtime.forward.arena.host_pool import HostPool
from model_runtime.forward.arena.transfers import ArenaTransfers
from model_runtime.interface.segments import identify
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.segment import copy_in, copy_out
from model_runtime.kv.slab import KVSlab

GEOMETRY = KVGeometry((LayerShape(2, 8, 8), LayerShape(2, 8, 4)), torch.float32, torch.device("cpu"))
IDS = tuple(range(100))


def filled(arena: Arena) -> ArenaKV:
    kv = arena.new_kv()
    kv.ensure_room(len(IDS))
    for tensor in (*kv.keys, *kv.values):
        tensor[:, : len(IDS)] = torch.randn(tensor[:, : len(IDS)].shape)
    kv.appended(IDS)
    return kv


@pytest.fixture
def arena() -> Arena:
    return Arena(GEOMETRY, 1024, 512)


def test_rows_come_back_bit_for_bit_and_look_as_a_slabs(arena: Arena) -> None:
    pool = HostPool(1 << 20, torch.device("cpu"))
    transfers = ArenaTransfers(arena, pool)
    kv, back, slab = filled(arena), arena.new_kv(), KVSlab(GEOMETRY)
    head = identify(None, IDS[:37], "f")
    for identity in (head, identify(head, IDS[37:], "f")):
        segment = transfers.begin_out(kv, identity, IDS[: identity.start_tokens])()
        assert torch.equal(segment.data, copy_out(kv, GEOMETRY, identity).data)
        transfers.copy_in(back, segment)
        copy_in(slab, GEOMETRY, segment)
    assert back.token_ids == list(IDS)
    for ours, theirs, slabs in zip(kv.keys + kv.values, back.keys + back.values, slab.keys + slab.values, strict=True):
        assert torch.equal(ours[:, : len(IDS)], theirs[:, : len(IDS)])
        assert torch.equal(ours[:, : len(IDS)], slabs[:, : len(IDS)])


def test_what_is_no_longer_there_is_not_copied(arena: Arena) -> None:
    transfers = ArenaTransfers(arena, HostPool(1 << 20, torch.device("cpu")))
    kv = filled(arena)
    segment = transfers.begin_out(kv, identify(None, IDS, "f"))()
    with pytest.raises(ValueError, match="where it begins"):
        transfers.copy_in(kv, segment)
    kv.crop(90)
    with pytest.raises(ValueError, match="does not hold"):
        transfers.begin_out(kv, identify(None, IDS, "f"))


def test_running_copies_end_before_rows_change_owner(arena: Arena) -> None:
    waits = []
    kv, other = filled(arena), filled(arena)
    arena.before_rows_change = lambda: waits.append(kv.length_tokens)
    kv.crop(len(IDS))
    assert not waits  # nothing is cropped
    kv.crop(60)
    kv.ensure_room(600)  # it moves: its neighbour is in the way
    other.free()
    kv.trim()
    assert len(waits) == 4


def test_the_pool_is_whole_again_when_nothing_refers_to_it(caplog: pytest.LogCaptureFixture) -> None:
    pool = HostPool(1 << 20, torch.device("cpu"))
    first = pool.take(300_000)
    first.fill_(7)
    view = first[1000:2000].view(torch.float32)
    del first
    assert pool.used_bytes >= 300_000  # a view of it is still there
    second = pool.take(600_000)
    second.fill_(1)
    with caplog.at_level("INFO"):
        beyond = pool.take(300_000)  # no room: memory of its own
    assert "host_pool_full" in caplog.text
    assert len(beyond) == 300_000
    assert set(view.view(torch.uint8).tolist()) == {7}
    del view, second
    assert pool.used_bytes == 0
    assert len(pool.take(pool.capacity_bytes)) == 1 << 20
