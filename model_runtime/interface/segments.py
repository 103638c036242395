"""Names runs of KV rows by what they were computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from model_runtime.interface.numerics import with_part

FORMAT_VERSION = 1  # of saved rows: their meaning and their file layout
FORMAT_NAME = "keepwarm-kv-"  # the version follows
HEADER_START = b'{"__metadata__":{"format":"' + FORMAT_NAME.encode()  # of every file, after the header's length
_LENGTH_BYTES = 8
HEAD_BYTES = _LENGTH_BYTES + len(HEADER_START)  # what `begins_like_ours` inspects
_MOST_DAMAGED_BYTES = 4  # of a file's first 48: it is still recognised as ours with this many damaged bytes


@dataclass(frozen=True, slots=True)
class SegmentIdentity:
    """Identifies a segment: rows from `start_tokens` on, computed from `token_ids` under the numeric `fingerprint`;
    `parent_key` is a hash of all earlier ids. Equal `key`s mean equal rows."""

    key: str
    parent_key: str
    start_tokens: int
    token_ids: tuple[int, ...]
    fingerprint: str

    @property
    def end_tokens(self) -> int:
        """The position after its last row."""
        return self.start_tokens + len(self.token_ids)


def key_of(parent_key: str, token_ids: Sequence[int], fingerprint: str) -> str:
    """The key of the rows of `token_ids` after the segment `parent_key` ("" at the start of a conversation)."""
    ids = np.asarray(token_ids, dtype="<i4").tobytes()
    return blake2b(f"{FORMAT_VERSION}\0{parent_key}\0{fingerprint}\0".encode() + ids, digest_size=20).hexdigest()


def identify(parent: SegmentIdentity | None, token_ids: Sequence[int], fingerprint: str) -> SegmentIdentity:
    """The identity of the segment that follows `parent` (None for the conversation's first)."""
    parent_key = "" if parent is None else parent.key
    start = 0 if parent is None else parent.end_tokens
    key = key_of(parent_key, token_ids, fingerprint)
    return SegmentIdentity(key, parent_key, start, tuple(token_ids), fingerprint)


def with_format(numerics: str) -> str:
    """What saved rows depend on: the engine's fingerprint, plus the format version if it is not the first."""
    return numerics if FORMAT_VERSION == 1 else with_part(numerics, "format", str(FORMAT_VERSION))


def begins_like_ours(head: bytes, may_be_cut: bool = False) -> bool:
    """Whether a file that starts with `head` was written by any version of Keepwarm. `may_be_cut`: the file may be
    truncated anywhere, even before its first byte."""
    start = head[_LENGTH_BYTES:HEAD_BYTES]
    if len(start) < len(HEADER_START) and not may_be_cut:
        return False
    wrong = sum(found != ours for found, ours in zip(start, HEADER_START, strict=False))
    # A header takes less than 16 MiB, so the upper bytes of its length are zero.
    return wrong + sum(byte != 0 for byte in head[3:_LENGTH_BYTES]) <= _MOST_DAMAGED_BYTES
