"""The slab holds what was appended through growing and cropping, in the bytes it says."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.kv.geometry import KVGeometry, LayerShape
from model_runtime.kv.slab import KVSlab

GEOMETRY = KVGeometry((LayerShape(2, 4, 3), LayerShape(1, 4, 3)), torch.float32, torch.device("cpu"), step_tokens=8)


def append(slab: KVSlab, ids: list[int]) -> None:
    """Writes every id as its own key and value, as a forward would."""
    start = slab.length_tokens
    slab.ensure_room(start + len(ids))
    rows = torch.tensor(ids, dtype=torch.float32)[None, :, None]
    for keys, values in zip(slab.keys, slab.values, strict=True):
        keys[:, start : start + len(ids)] = rows
        values[:, start : start + len(ids)] = -rows
    slab.appended(ids)


steps = st.lists(
    st.one_of(
        st.lists(st.integers(0, 99), min_size=1, max_size=30).map(lambda ids: ("append", ids)),
        st.floats(0, 1).map(lambda share: ("crop", share)),
        st.just(("free", None)),
    ),
    max_size=12,
)


@given(steps)
def test_rows_are_those_appended_after_any_operations(steps: list[tuple[str, object]]) -> None:
    slab, expected = KVSlab(GEOMETRY), []
    for action, value in steps:
        if action == "append":
            append(slab, value)  # type: ignore[arg-type]
            expected += value  # type: ignore[operator]
        elif action == "crop":
            expected = expected[: int(value * len(expected))]  # type: ignore[operator]
            slab.crop(len(expected))
        else:
            slab.free()
            expected = []
            assert slab.allocated_bytes == 0
        assert slab.token_ids == expected
        assert slab.length_tokens == len(expected) <= slab.capacity_tokens
        for keys, values in zip(slab.keys, slab.values, strict=True):
            assert keys[0, : len(expected), 0].tolist() == expected
            assert values[0, : len(expected), 0].tolist() == [-i for i in expected]
        tensors = (*slab.keys, *slab.values)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
        assert slab.allocated_bytes == sum(storages.values())
        assert slab.allocated_bytes == slab.capacity_tokens * GEOMETRY.bytes_per_token


@given(st.integers(1, 200_000))
def test_a_slab_wastes_little(tokens: int) -> None:
    capacity = GEOMETRY.capacity_for(tokens)
    assert tokens <= capacity <= tokens + max(GEOMETRY.step_tokens, tokens // 8)
    assert capacity <= GEOMETRY.capacity_for(tokens + 1)


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), max_size=20))
def test_the_common_prefix_is_exact(held: list[int], ledger: list[int]) -> None:
    slab = KVSlab(GEOMETRY)
    append(slab, held or [0])
    held = held or [0]
    shared = slab.common_prefix_tokens(ledger)
    assert held[:shared] == ledger[:shared]
    assert shared == min(len(held), len(ledger)) or held[shared] != ledger[shared]
