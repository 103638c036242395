"""Finds the saved segments that hold most of a ledger, however it was cut and wherever it differs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from model_runtime.interface.segments import SegmentIdentity
from sessions.ledger.ledger import common_prefix
from sessions.memory.saved.chains import SHARED_PROMPT_TOKENS, cut, longest_chain
from sessions.store.tables.segments import SavedSegment

IDS = st.lists(st.integers(0, 1), max_size=24).map(tuple)


def saved(identity: SegmentIdentity) -> SavedSegment:
    return SavedSegment(
        key=identity.key,
        parent_key=identity.parent_key,
        owner_id="ada",
        fingerprint=identity.fingerprint,
        start_tokens=identity.start_tokens,
        tokens=len(identity.token_ids),
        size_bytes=len(identity.token_ids),
        last_used_at=0.0,
    )


@given(st.lists(st.tuples(IDS, st.integers(1, 9)), max_size=6), IDS)
def test_a_chain_holds_as_much_as_any_saved_path(
    paths: list[tuple[tuple[int, ...], int]], ids: tuple[int, ...]
) -> None:
    stored: dict[str, SegmentIdentity] = {}
    for path, limit in paths:
        stored |= {piece.key: piece for piece in cut(path, None, 0, limit, "m")}
    chain = longest_chain(ids, map(saved, stored.values()), "m", lambda key: stored[key].token_ids)
    assert chain.useful_tokens == max((common_prefix(path, ids) for path, _ in paths), default=0)
    held = [token for identity in chain.identities for token in identity.token_ids]
    assert tuple(held[: chain.useful_tokens]) == ids[: chain.useful_tokens]
    keys = [identity.key for identity in chain.identities]
    assert [identity.parent_key for identity in chain.identities] == ["", *keys][: len(keys)]
    assert chain.size_bytes == len(held)
    assert all(stored[identity.key] == identity for identity in chain.identities)


@given(IDS, IDS)
def test_another_models_segments_are_not_used(path: tuple[int, ...], ids: tuple[int, ...]) -> None:
    stored = {piece.key: piece for piece in cut(path, None, 0, 5, "m")}
    chain = longest_chain(ids, map(saved, stored.values()), "n", lambda key: stored[key].token_ids)
    assert chain.identities == ()


def test_no_restored_kv_is_longer_than_the_limit() -> None:
    stored = {piece.key: piece for piece in cut((1, 2, 3, 4, 5, 6), None, 0, 3, "m")}
    chain = longest_chain((1, 2, 3, 4), map(saved, stored.values()), "m", lambda key: stored[key].token_ids, 5)
    assert (chain.useful_tokens, chain.end_tokens) == (3, 3)


def test_an_answer_begins_a_segment_after_a_long_prompt() -> None:
    ids = tuple(range(SHARED_PROMPT_TOKENS + 20))
    ends = [piece.end_tokens for piece in cut(ids, None, SHARED_PROMPT_TOKENS, 10_000, "m")]
    assert ends == [SHARED_PROMPT_TOKENS, len(ids)]
    assert len(cut(ids, None, SHARED_PROMPT_TOKENS - 1, 10_000, "m")) == 1
    first = cut(ids, None, SHARED_PROMPT_TOKENS, 10_000, "m")[0]
    assert [piece.start_tokens for piece in cut(ids, first, SHARED_PROMPT_TOKENS, 10_000, "m")] == [first.end_tokens]
    assert cut(ids[: first.end_tokens], first, 0, 10_000, "m") == []
