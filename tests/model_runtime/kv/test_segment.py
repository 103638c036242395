"""A saved KV comes back bit for bit, or it is refused with the reason."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from model_runtime.interface.errors import SegmentNotSaved, SegmentRefused
from model_runtime.interface.segments import SegmentIdentity, identify
from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.segment import KVSegment, copy_in, copy_out, data_bytes_for, joined, read, write
from model_runtime.kv.slab import KVSlab

GEOMETRY = KVGeometry((LayerShape(2, 8, 8), LayerShape(2, 8, 4)), torch.float32, torch.device("cpu"), step_tokens=16)
IDS = tuple(range(40))


def filled(ids: tuple[int, ...] = IDS, geometry: KVGeometry = GEOMETRY) -> KVSlab:
    slab = KVSlab(geometry)
    slab.ensure_room(len(ids))
    generator = torch.Generator().manual_seed(len(ids))
    for tensor in (*slab.keys, *slab.values):
        tensor[:, : len(ids)] = torch.randn(tensor[:, : len(ids)].shape, generator=generator)
    slab.appended(ids)
    return slab


def two_segments() -> tuple[SegmentIdentity, SegmentIdentity]:
    first = identify(None, IDS[:25], "model a")
    return first, identify(first, IDS[25:], "model a")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[SegmentIdentity, Path]:
    identity = two_segments()[1]
    path = tmp_path / identity.key
    write(copy_out(filled(), GEOMETRY, identity), GEOMETRY, path)
    return identity, path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_bit_for_bit_through_files(dtype: torch.dtype, tmp_path: Path) -> None:
    geometry = replace(GEOMETRY, dtype=dtype)
    slab, back = filled(geometry=geometry), KVSlab(geometry)
    for identity in two_segments():
        path = tmp_path / identity.key
        size = write(copy_out(slab, geometry, identity), geometry, path)
        assert size == path.stat().st_size
        assert size - data_bytes_for(geometry, len(identity.token_ids)) < 1024
        assert path.stat().st_mode & 0o777 == 0o600
        copy_in(back, geometry, read(identity, geometry, path))
    assert back.token_ids == slab.token_ids
    for ours, theirs in zip((*back.keys, *back.values), (*slab.keys, *slab.values), strict=True):
        assert torch.equal(ours[:, : len(IDS)], theirs[:, : len(IDS)])


def test_other_tools_can_look_inside(saved: tuple[SegmentIdentity, Path]) -> None:
    with safe_open(saved[1], framework="pt") as file:
        assert file.metadata()["start_tokens"] == "25"
        assert torch.equal(file.get_tensor("layers.1.values"), filled().values[1][:, 25:40])


def test_a_key_names_the_text_before_it_the_tokens_and_the_model() -> None:
    first, second = two_segments()
    assert (second.start_tokens, second.end_tokens) == (25, 40)
    others = [
        identify(None, IDS[25:], "model a"),
        identify(first, IDS[25:], "model b"),
        identify(first, IDS[25:-1], "model a"),
        identify(identify(None, IDS[1:26], "model a"), IDS[25:], "model a"),
    ]
    assert len({second.key, *(other.key for other in others)}) == 5
    assert identify(first, IDS[25:], "model a") == second


def test_rows_that_are_no_longer_there_are_not_staged() -> None:
    slab = filled()
    slab.crop(30)
    with pytest.raises(ValueError, match="does not hold"):
        copy_out(slab, GEOMETRY, two_segments()[1])
    with pytest.raises(ValueError, match="where it begins"):
        copy_in(slab, GEOMETRY, copy_out(filled(), GEOMETRY, two_segments()[1]))


def test_every_flipped_bit_and_every_truncation_is_refused(saved: tuple[SegmentIdentity, Path]) -> None:
    identity, path = saved
    whole, randomness = path.read_bytes(), random.Random(8)
    places = [*range(0, 8 * 700, 5), *(randomness.randrange(8 * len(whole)) for _ in range(600))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(SegmentRefused):
            read(identity, GEOMETRY, path)
    for length in {0, 7, 8, 100, len(whole) - 1, *(randomness.randrange(len(whole)) for _ in range(100))}:
        path.write_bytes(whole[:length])
        with pytest.raises(SegmentRefused):
            read(identity, GEOMETRY, path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(SegmentRefused):
        read(identity, GEOMETRY, path)
    path.write_bytes(whole)
    assert read(identity, GEOMETRY, path).data_bytes


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        (lambda i: identify(two_segments()[0], i.token_ids, "model b"), "another model"),
        (lambda i: identify(two_segments()[0], (*i.token_ids[:-1], 77), "model a"), "another text"),
        (lambda i: two_segments()[0], "another text"),
    ],
)
def test_a_swapped_file_is_refused_with_the_reason(
    saved: tuple[SegmentIdentity, Path], expected: Callable[[SegmentIdentity], SegmentIdentity], reason: str
) -> None:
    with pytest.raises(SegmentRefused, match=reason):
        read(expected(saved[0]), GEOMETRY, saved[1])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SegmentRefused, match="cannot be read"):
        read(two_segments()[0], GEOMETRY, tmp_path / "none")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = copy_out(filled(), GEOMETRY, two_segments()[0])
    with pytest.raises(SegmentNotSaved, match="could not be saved"):
        write(segment, GEOMETRY, tmp_path / "no such folder" / "x")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SegmentNotSaved, match="No space left"):
        write(segment, GEOMETRY, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_segment_is_a_copy() -> None:
    slab = filled()
    segment: KVSegment = copy_out(slab, GEOMETRY, two_segments()[0])
    before = segment.data.clone()
    for tensor in (*slab.keys, *slab.values):
        tensor.zero_()
    assert torch.equal(segment.data, before)


def test_the_same_tokens_behind_others_are_not_the_same_rows() -> None:
    second = two_segments()[1]
    slab = filled((99, *IDS[1:]))
    with pytest.raises(ValueError, match="does not hold"):
        copy_out(slab, GEOMETRY, second, before=IDS[:25])
    assert copy_out(filled(), GEOMETRY, second, before=IDS[:25]).identity == second


def test_segments_that_follow_one_another_are_joined_to_the_same_rows() -> None:
    parts = [copy_out(filled(), GEOMETRY, identity) for identity in two_segments()]
    whole = identify(None, IDS, "model a")
    assert torch.equal(joined(whole, parts, GEOMETRY).data, copy_out(filled(), GEOMETRY, whole).data)
