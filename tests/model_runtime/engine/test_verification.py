"""A kept KV is compared with a re-read of its ledger: a correct one agrees, damage is found, no request is delayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from model_runtime.engine.verification import EXACT, HALF, ROUNDED, Tolerance, tolerance_of
from model_runtime.interface.config import EngineConfig, SavedKvDtype
from model_runtime.interface.errors import SegmentRefused
from model_runtime.interface.events import PrefillProgress, TokenDelta
from model_runtime.interface.findings import Verification
from model_runtime.interface.protocol import KV
from model_runtime.interface.segments import identify
from model_runtime.kv.segment import KVSegment
from model_runtime.kv.slab import KVSlab
from model_runtime.loading.loaded import LoadedModel
from tests.conftest import TinyDir
from tests.model_runtime.engine.test_embedded_exactness import ids_of
from tests.model_runtime.harness import GREEDY, WatchedEngine, loaded_tiny
from tests.polling import until

Damage = Callable[[KVSlab], None]


@pytest.fixture
def watched(tiny_dir: TinyDir) -> Iterator[WatchedEngine]:
    engine = WatchedEngine(loaded_tiny(tiny_dir("llama")))
    yield engine
    engine.close()


def talked(watched: WatchedEngine, tokens: int = 100) -> tuple[KVSlab, tuple[int, ...]]:
    """A KV after a turn, read in chunks and sampled one by one, and its ledger with the pending id."""
    kv = watched.engine.new_kv()
    answer = watched.submit(kv, [(7 * i) % 500 for i in range(tokens)])
    answer.wait()
    return kv, answer.ledger + answer.token_ids


def verified(watched: WatchedEngine, ledger: Sequence[int], *copies: KV | Iterator[KVSegment]) -> Verification:
    scratch = watched.engine.new_kv()
    found = watched.engine.verify(scratch, ledger, copies, lambda: False)
    assert found is not None
    assert scratch.allocated_bytes <= watched.engine.kv_bytes(len(ledger))
    watched.engine.release(scratch)
    return found


def segments_of(watched: WatchedEngine, kv: KVSlab, *ends: int) -> list[KVSegment]:
    parent, start, found = None, 0, []
    for end in ends:
        parent = identify(parent, kv.token_ids[start:end], "tiny")
        found.append(watched.engine.stage(kv, parent))
        start = end
    return found


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "gptbigcode"])
def test_a_correct_kv_agrees_to_rounding(tiny_dir: TinyDir, name: str) -> None:
    watched = WatchedEngine(loaded_tiny(tiny_dir(name)))
    kv, ledger = talked(watched)
    before = [t[:, : kv.length_tokens].clone() for t in (*kv.keys, *kv.values)]
    found = verified(watched, ledger, iter(segments_of(watched, kv, 30, 90, kv.length_tokens)), kv)
    assert found.agrees
    assert found.tokens == kv.length_tokens == len(ledger) - 1
    assert found.logit_difference < 1e-4
    assert abs(found.nll_gap) < 1e-5
    assert [(copy.tokens, copy.first_bad_token) for copy in found.copies] == [(found.tokens, None)] * 2
    assert max(copy.largest_difference for copy in found.copies) < 1e-4
    after = [t[:, : kv.length_tokens] for t in (*kv.keys, *kv.values)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # only looked at
    watched.close()


def test_kvs_in_an_arena_are_verified_too(tiny_dir: TinyDir) -> None:
    config = EngineConfig(prefill_chunk_tokens=32, kv_arena_bytes=8 * 1024 * 1024)
    watched = WatchedEngine(loaded_tiny(tiny_dir("llama")), config)
    kv, ledger = talked(watched)
    found = verified(watched, ledger, iter(segments_of(watched, kv, 30, kv.length_tokens)), kv)
    assert found.agrees
    assert found.logit_difference < 1e-4
    with torch.inference_mode():
        a_zeroed_row(kv)
    assert verified(watched, ledger, kv).copies[0].first_bad_token == 40
    watched.close()


def a_zeroed_row(kv: KVSlab) -> None:
    kv.values[1][:, 40] = 0


def a_flipped_exponent(kv: KVSlab) -> None:
    kv.keys[2].view(torch.int32)[0, 40, 3] ^= 1 << 30


def another_conversations_rows(kv: KVSlab) -> None:
    for tensor in (*kv.keys, *kv.values):
        tensor[:, 40:60] = tensor[:, 10:30].clone()


def not_a_number(kv: KVSlab) -> None:
    kv.keys[0][0, 40, 0] = torch.nan


@pytest.mark.parametrize("damage", [a_zeroed_row, a_flipped_exponent, another_conversations_rows, not_a_number])
def test_damage_is_found_where_it_is(watched: WatchedEngine, damage: Damage) -> None:
    kv, ledger = talked(watched)
    with torch.inference_mode():
        damage(kv)
    found = verified(watched, ledger, kv)
    assert not found.agrees
    assert found.copies[0].first_bad_token == 40
    assert found.copies[0].largest_difference > 0.1
    assert found.logit_difference > 1e-3


def a_flipped_exponent_of_16_bits(kv: KVSlab) -> None:
    kv.keys[2].view(torch.int16)[0, 40, 3] ^= 1 << 14


@pytest.mark.parametrize(
    "damage", [a_zeroed_row, a_flipped_exponent_of_16_bits, another_conversations_rows, not_a_number]
)
def test_what_16_bits_round_off_is_no_damage_and_damage_is_found_among_it(tiny_dir: TinyDir, damage: Damage) -> None:
    loaded = loaded_tiny(tiny_dir("llama"))
    loaded.model.bfloat16()
    watched = WatchedEngine(replace(loaded, kv_dtype=torch.bfloat16))
    kv, ledger = talked(watched)
    found = verified(watched, ledger, kv)
    assert found.agrees
    assert found.copies[0].largest_difference > EXACT.element  # which would have been damage in 32 bits
    with torch.inference_mode():
        damage(kv)
    assert verified(watched, ledger, kv).copies[0].first_bad_token == 40
    watched.close()


@pytest.mark.parametrize(
    ("kv_dtype", "cold_kv_dtype", "expected"),
    [
        *((torch.float32, "exact", EXACT), (torch.float32, "int8", ROUNDED)),
        *((torch.bfloat16, "exact", HALF), (torch.float16, "int8", HALF)),
    ],
)
def test_the_coarsest_rounding_says_what_may_differ(
    tiny_dir: TinyDir, kv_dtype: torch.dtype, cold_kv_dtype: SavedKvDtype, expected: Tolerance
) -> None:
    model = loaded_tiny(tiny_dir("llama")).model.to(kv_dtype)
    assert tolerance_of(model, kv_dtype, cold_kv_dtype) is expected


def test_one_bad_copy_does_not_blame_the_other(watched: WatchedEngine) -> None:
    kv, ledger = talked(watched)
    segments = segments_of(watched, kv, 30, 90)
    bad = segments[1].data.clone()
    bad[: len(bad) // 2] = 0
    found = verified(watched, ledger, iter([segments[0], replace(segments[1], data=bad)]), kv)
    assert not found.agrees
    assert [copy.first_bad_token for copy in found.copies] == [30, None]
    assert found.logit_difference < 1e-4  # the last copy's


def test_rows_beyond_the_ledger_are_not_verified(watched: WatchedEngine) -> None:
    """The KV went on with another branch; a saved segment ends in the middle of the ledger."""
    kv, ledger = talked(watched)
    segment = segments_of(watched, kv, kv.length_tokens)[0]
    branched = (*ledger[:50], *((i + 1) % 500 for i in ledger[50:]))
    found = verified(watched, branched, iter([segment]), kv)
    assert found.agrees
    assert [copy.tokens for copy in found.copies] == [50, 50]
    assert verified(watched, ledger[:1], kv).agrees


def test_a_copy_that_cannot_be_fetched_ends_it(watched: WatchedEngine) -> None:
    kv, ledger = talked(watched)

    def refused() -> Iterator[KVSegment]:
        yield segments_of(watched, kv, 30)[0]
        raise SegmentRefused("it is damaged")

    with pytest.raises(SegmentRefused, match="damaged"):
        verified(watched, ledger, refused())


def test_it_can_be_stopped(watched: WatchedEngine) -> None:
    kv, ledger = talked(watched)
    scratch = watched.engine.new_kv()
    assert watched.engine.verify(scratch, ledger, [kv], lambda: scratch.length_tokens > 20) is None
    assert 20 < scratch.length_tokens < 100


@pytest.mark.embedded
def test_the_embedded_model_agrees_with_itself_at_four_bits_and_delays_no_request(loaded_embedded: LoadedModel) -> None:
    """Through our own kernels what was written and what is read have the same bits. Beside it an answer goes on, and a
    new prompt is read first."""
    watched = WatchedEngine(loaded_embedded, EngineConfig(), 2048)
    engine = watched.engine
    try:
        ids = ids_of(loaded_embedded, 500)
        kv, ledger = engine.new_kv(), tuple(ids[:50])
        for end in (150, 300):  # turns: read, then written
            answer = watched.submit(kv, ledger, replace(GREEDY, max_new_tokens=20))
            answer.wait()
            ledger = answer.ledger + answer.token_ids + tuple(ids[end - 100 : end])
        ledger = answer.ledger + answer.token_ids

        writing = watched.submit(engine.new_kv(), ids[:40], replace(GREEDY, max_new_tokens=400))
        until(lambda: len(writing.token_ids) >= 3, 60.0)
        found = verified(watched, ledger, kv)
        assert found.agrees
        assert (found.copies[0].largest_difference, found.logit_difference) == (0.0, 0.0)
        begun = len(writing.token_ids)
        scratch = engine.new_kv()
        reading: list[object] = []

        def must_stop() -> bool:
            """A prompt arrives in the middle; from then on nothing is read in passing until its first token."""
            if not reading and scratch.length_tokens > 60:
                reading.append(watched.submit(engine.new_kv(), ids[100:400], replace(GREEDY, max_new_tokens=2)))
                reading.append(scratch.length_tokens)
            return False

        assert engine.verify(scratch, ledger, [kv], must_stop) is not None
        answer, held = reading
        kinds = [type(event) for event in answer.events]  # type: ignore[attr-defined]
        assert kinds[-2] is TokenDelta
        assert PrefillProgress in kinds
        assert isinstance(held, int)
        assert len(writing.token_ids) > begun  # it went on meanwhile
        writing.abort()
        writing.wait()

        with torch.inference_mode():
            kv.keys[20][1, 77, 6] += 2 * kv.keys[20][:, :100].square().mean().sqrt()
        assert verified(watched, ledger, kv).copies[0].first_bad_token == 77
    finally:
        watched.close()
