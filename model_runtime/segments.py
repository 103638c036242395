"""Naming a run of KV rows by what it was computed from. Imports no torch, so that `sessions` may import it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class SegmentIdentity:
    """What a segment is: rows `start_tokens..` of the ledger whose ids before it are hashed in `parent_key`, computed
    from `token_ids` under the numeric `fingerprint`. `key` names it; equal keys mean equal rows."""

    key: str
    parent_key: str
    start_tokens: int
    token_ids: tuple[int, ...]
    fingerprint: str

    @property
    def end_tokens(self) -> int:
        """The position behind its last row."""
        return self.start_tokens + len(self.token_ids)


def key_of(parent_key: str, token_ids: Sequence[int], fingerprint: str) -> str:
    """The name of the rows of `token_ids` behind the segment of that name ("": at the beginning)."""
    ids = np.asarray(token_ids, dtype="<i4").tobytes()
    return blake2b(f"{FORMAT_VERSION}\0{parent_key}\0{fingerprint}\0".encode() + ids, digest_size=20).hexdigest()


def identify(parent: SegmentIdentity | None, token_ids: Sequence[int], fingerprint: str) -> SegmentIdentity:
    """The identity of the segment behind `parent` (None: the conversation's first)."""
    parent_key = "" if parent is None else parent.key
    start = 0 if parent is None else parent.end_tokens
    key = key_of(parent_key, token_ids, fingerprint)
    return SegmentIdentity(key, parent_key, start, tuple(token_ids), fingerprint)
