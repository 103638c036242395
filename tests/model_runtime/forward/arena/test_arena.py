"""The arena keeps every KV's rows through growing, moving and compacting, and never gives one row to two KVs."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.forward.arena.arena import STEP_TOKENS, Arena, ArenaKV
from model_runtime.forward.arena.spans import SpanAllocator
from model_runtime.kv.geometry import KVGeometry, LayerShape

GEOMETRY = KVGeometry((LayerShape(2, 4, 3), LayerShape(1, 4, 3)), torch.float32, torch.device("cpu"))
CAPACITY = 12 * STEP_TOKENS


def write(kv: ArenaKV, ids: list[int]) -> None:
    start = kv.length_tokens
    rows = torch.tensor(ids, dtype=torch.float32)[None, :, None]
    for keys, values in zip(kv.keys, kv.values, strict=True):
        keys[:, start : start + len(ids)] = rows
        values[:, start : start + len(ids)] = -rows
    kv.appended(ids)


def assert_holds(kv: ArenaKV, ids: list[int]) -> None:
    assert kv.token_ids == ids
    for keys, values in zip(kv.keys, kv.values, strict=True):
        assert keys[0, : len(ids), 0].tolist() == ids
        assert values[0, : len(ids), 0].tolist() == [-i for i in ids]


steps = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 3 * STEP_TOKENS)),
            st.tuples(st.just("crop"), st.integers(0, 2 * STEP_TOKENS)),
            st.tuples(st.just("trim"), st.just(0)),
            st.tuples(st.just("free"), st.just(0)),
        ),
    ),
    max_size=40,
)


@given(steps)
def test_rows_survive_every_move(steps: list[tuple[int, tuple[str, int]]]) -> None:
    arena = Arena(GEOMETRY, CAPACITY, longest_span_tokens=CAPACITY)
    kvs, expected = [arena.new_kv() for _ in range(5)], [[] for _ in range(5)]
    for number, (who, (action, amount)) in enumerate(steps):
        kv, held = kvs[who], expected[who]
        if action == "append":
            others = sum(k.span_tokens for k in kvs if k is not kv)
            fits = others + -(-(len(held) + amount) // STEP_TOKENS) * STEP_TOKENS <= CAPACITY
            try:
                kv.ensure_room(len(held) + amount)
            except torch.OutOfMemoryError:
                assert not fits
            else:
                assert fits
                ids = [number * 1000 + i for i in range(amount)]
                write(kv, ids)
                held += ids
        elif action == "crop":
            kv.crop(amount)
            del held[amount:]
        elif action == "trim":
            kv.trim()
        else:
            kv.free()
            held.clear()
            assert kv.allocated_bytes == 0
        spans = sorted((k.span_start, k.span_start + k.span_tokens) for k in kvs if k.span_tokens)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        assert arena.free_tokens == CAPACITY - sum(k.span_tokens for k in kvs)
        for k, ids in zip(kvs, expected, strict=True):
            assert_holds(k, ids)
            assert k.allocated_bytes == arena.bytes_for(k.span_tokens) == k.span_tokens * GEOMETRY.bytes_per_token


def test_a_long_answer_gets_a_span_although_the_holes_are_small() -> None:
    arena = Arena(GEOMETRY, CAPACITY, longest_span_tokens=CAPACITY)
    kvs = [arena.new_kv() for _ in range(6)]
    for place, kv in enumerate(kvs):
        kv.ensure_room(2 * STEP_TOKENS)
        write(kv, [100 * place + i for i in range(STEP_TOKENS + place)])
    for kv in kvs[::2]:
        kv.free()
    assert arena.free_tokens == 6 * STEP_TOKENS
    grown = kvs[3]
    grown.ensure_room(8 * STEP_TOKENS)  # its own two and the six free ones
    assert arena.free_tokens == 0
    for place in (1, 3, 5):
        assert_holds(kvs[place], [100 * place + i for i in range(STEP_TOKENS + place)])


def test_what_cannot_fit_is_refused_and_changes_nothing() -> None:
    arena = Arena(GEOMETRY, CAPACITY, longest_span_tokens=CAPACITY)
    kv = arena.new_kv()
    kv.ensure_room(10)
    write(kv, [1, 2, 3])
    with pytest.raises(torch.OutOfMemoryError, match="room for"):
        kv.ensure_room(CAPACITY + 1)
    assert_holds(kv, [1, 2, 3])
    assert kv.span_tokens == STEP_TOKENS


def longest_hole(taken: list[tuple[int, int]], capacity: int) -> int:
    starts = sorted([*taken, (capacity, 0)])
    ends = [0, *(start + rows for start, rows in starts)]
    return max(start - end for (start, _), end in zip(starts, ends, strict=False))


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60))
def test_no_row_has_two_owners(steps: list[tuple[bool, int]]) -> None:
    spans = SpanAllocator(200)
    taken: list[tuple[int, int]] = []
    for take, amount in steps:
        if take:
            start = spans.take(amount)
            if start is None:
                assert amount > longest_hole(taken, 200)
            else:
                assert all(start + amount <= s or s + n <= start for s, n in taken)
                taken.append((start, amount))
        elif taken:
            start, rows = taken.pop(amount % len(taken))
            spans.give_back(start, rows)
            with pytest.raises(ValueError, match="were not taken"):
                spans.give_back(start, rows)
        assert spans.free_rows == 200 - sum(rows for _, rows in taken)
    for start, rows in taken:
        spans.give_back(start, rows)
    assert spans.take(200) == 0
