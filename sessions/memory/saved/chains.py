"""Finds the saved segments that a ledger can use, and cuts the rest of it into new ones. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from model_runtime.interface.segments import SegmentIdentity, identify
from sessions.ledger.ledger import common_prefix
from sessions.store.tables.segments import SavedSegment

BEGINNING_TOKENS = 256  # length of the pieces of a first prompt: conversations with the same beginning share them
SHARED_PROMPT_TOKENS = 256  # an answer begins a new segment after a prompt of at least this many new tokens


@dataclass(frozen=True, slots=True)
class Chain:
    """Consecutive segments from position 0. All but the last hold the ledger's own ids; the last may differ from the
    ledger from some position on (a regenerated answer), and then only its beginning is useful."""

    identities: tuple[SegmentIdentity, ...] = ()
    size_bytes: int = 0
    useful_tokens: int = 0  # how many of the ids that it was looked up for it holds

    @property
    def whole(self) -> tuple[SegmentIdentity, ...]:
        """The segments that are useful as a whole; new segments may continue them."""
        return tuple(i for i in self.identities if i.end_tokens <= self.useful_tokens)

    @property
    def end_tokens(self) -> int:
        """The length of a KV after all of the chain was restored."""
        return self.identities[-1].end_tokens if self.identities else 0


def longest_chain(
    ids: tuple[int, ...],
    saved: Iterable[SavedSegment],
    fingerprint: str,
    ids_of: Callable[[str], tuple[int, ...]],
    limit_tokens: int | None = None,
) -> Chain:
    """The chain that holds most of `ids`, which are the ids of a KV: a ledger without its last id.

    `ids_of` reads a row's ids; it is called only for segments that may hold a part of the ledger. No restored KV may be
    longer than `limit_tokens`.
    """
    children: dict[str, list[SavedSegment]] = defaultdict(list)
    for segment in saved:
        if limit_tokens is None or segment.end_tokens <= limit_tokens:
            children[segment.parent_key].append(segment)
    best, partly = Chain(), []
    open_ends: list[Chain] = [best]
    while open_ends:
        chain = open_ends.pop()
        if chain.useful_tokens > best.useful_tokens:
            best = chain
        parent = chain.identities[-1] if chain.identities else None
        for child in children.get(parent.key if parent else "", ()):
            identity = identify(parent, ids[child.start_tokens : child.end_tokens], fingerprint)
            if identity.key == child.key:
                open_ends.append(_longer(chain, identity, child, child.end_tokens))
            else:
                partly.append((chain, parent, child))
    for chain, parent, child in partly:
        if child.end_tokens > best.useful_tokens:
            identity = identify(parent, ids_of(child.key), fingerprint)
            useful = chain.end_tokens + common_prefix(identity.token_ids, ids[chain.end_tokens :])
            if identity.key == child.key and useful > max(best.useful_tokens, chain.end_tokens):
                best = _longer(chain, identity, child, useful)
    return best


def cut(
    ids: tuple[int, ...], parent: SegmentIdentity | None, prompt_tokens: int, limit_tokens: int, fingerprint: str
) -> list[SegmentIdentity]:
    """Cuts the part of `ids` after `parent` into segments of at most `limit_tokens`. There is a cut after a long
    prompt, so that its other answers share it, and a conversation's first prompt is cut into pieces of equal length, so
    that conversations with the same beginning share them."""
    pieces: list[SegmentIdentity] = []
    start = parent.end_tokens if parent else 0
    stops = [prompt_tokens] if prompt_tokens - start >= SHARED_PROMPT_TOKENS and prompt_tokens < len(ids) else []
    for stop in (*stops, len(ids)):
        is_beginning = start == 0 and stop == prompt_tokens
        most_tokens = min(limit_tokens, BEGINNING_TOKENS) if is_beginning else limit_tokens
        while start < stop:
            end = min(stop, start + most_tokens)
            parent = identify(parent, ids[start:end], fingerprint)
            pieces.append(parent)
            start = end
    return pieces


def _longer(chain: Chain, identity: SegmentIdentity, saved: SavedSegment, useful_tokens: int) -> Chain:
    return Chain((*chain.identities, identity), chain.size_bytes + saved.size_bytes, useful_tokens)
