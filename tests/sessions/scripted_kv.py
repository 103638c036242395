"""The scripted engine's KV, and its segments: real files in their own format, verified as strictly as the real ones."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model_runtime.interface.errors import SegmentNotSaved, SegmentRefused
from model_runtime.interface.findings import Comparison
from model_runtime.interface.segments import FORMAT_NAME, SegmentIdentity
from sessions.ledger.ledger import common_prefix

GROWTH_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ScriptedSegment:
    """A mark per row, in as many bytes as the KV says a row has."""

    identity: SegmentIdentity
    marks: tuple[int, ...]
    data_bytes: int


def next_mark(mark: int, token: int) -> int:
    """The mark of a row, which depends on its token and on every token before it."""
    return zlib.crc32(token.to_bytes(4, "little"), mark)


class ScriptedKV:
    """Token ids, and for each a mark that depends on all before it, in place of keys and values; bytes grow in steps
    and stay after a crop, like a slab's."""

    def __init__(self, bytes_per_token: int) -> None:
        self.tokens: list[int] = []
        self.marks: list[int] = []
        self.busy = False
        self.capacity_tokens = 0
        self.is_long_rope = False
        self._bytes_per_token = bytes_per_token

    @property
    def length_tokens(self) -> int:
        return len(self.tokens)

    @property
    def allocated_bytes(self) -> int:
        return self.capacity_tokens * self._bytes_per_token

    def append(self, ids: Sequence[int]) -> None:
        for token in ids:
            self.marks.append(next_mark(self.marks[-1] if self.marks else 0, token))
        self._extend(ids)

    def append_segment(self, segment: ScriptedSegment) -> None:
        if segment.identity.start_tokens != len(self.tokens):
            raise ValueError("a segment must be appended where it begins")
        self.marks.extend(segment.marks)
        self._extend(segment.identity.token_ids)

    def common(self, ids: Sequence[int]) -> int:
        pairs = enumerate(zip(self.tokens, ids, strict=False))
        return next((i for i, (mine, other) in pairs if mine != other), min(len(self.tokens), len(ids)))

    def copy_beginning(self, source: ScriptedKV, ids: Sequence[int], least_tokens: int) -> tuple[int, int]:
        end = source.common(ids)
        start = self.common(ids[:end])
        if end - start < least_tokens:
            return 0, 0
        self.crop(start)
        self.marks.extend(source.marks[start:end])
        self._extend(ids[start:end])
        return start, end

    def crop(self, length_tokens: int) -> None:
        del self.tokens[length_tokens:]
        del self.marks[length_tokens:]

    def check(self) -> None:
        mark = 0
        for token, kept in zip(self.tokens, self.marks, strict=True):
            mark = next_mark(mark, token)
            assert kept == mark, "a row that was computed behind other tokens"

    def compare(self, tokens: Sequence[int], marks: Sequence[int]) -> Comparison:
        """Compares another KV's rows with these, as far as the tokens are equal."""
        same = common_prefix(tokens, self.tokens)
        bad = next((i for i in range(same) if marks[i] != self.marks[i]), None)
        return Comparison(same, 0.0 if bad is None else 9.0, bad)

    def clear(self) -> None:
        self.crop(0)
        self.capacity_tokens = 0

    def _extend(self, ids: Sequence[int]) -> None:
        self.tokens.extend(ids)
        self.capacity_tokens = max(self.capacity_tokens, rounded_up(len(self.tokens)))


def rounded_up(tokens: int) -> int:
    return -(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS


def held_by(copy: object) -> tuple[list[int], list[int]]:
    """The tokens and marks of a KV, or of segments that follow one another."""
    if isinstance(copy, ScriptedKV):
        return list(copy.tokens), list(copy.marks)
    tokens: list[int] = []
    marks: list[int] = []
    for segment in copy:  # type: ignore[attr-defined]
        assert segment.identity.start_tokens == len(tokens)
        tokens += segment.identity.token_ids
        marks += segment.marks
    return tokens, marks


def write_segment(segment: ScriptedSegment, path: Path) -> int:
    """Writes the file completely or not at all. Returns its size in bytes."""
    payload = b"".join(mark.to_bytes(4, "little") for mark in segment.marks).ljust(segment.data_bytes, b"\0")
    header = _header(segment.identity, zlib.crc32(payload))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(header + payload)
        temporary.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SegmentNotSaved(f"This conversation's memory could not be saved: {error.strerror}.") from error
    return len(header) + len(payload)


def read_segment(identity: SegmentIdentity, path: Path, data_bytes: int) -> ScriptedSegment:
    """Reads a segment. The file must be complete and hold exactly what is expected."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SegmentRefused(f"the saved memory cannot be read ({error.strerror})") from error
    line, separator, payload = content.partition(b"}}\n")
    if not separator or len(payload) != data_bytes:
        raise SegmentRefused("the saved memory is damaged (it is cut off)")
    if line + separator != _header(identity, zlib.crc32(payload)):
        raise SegmentRefused("the saved memory is damaged or belongs to another text")
    count = len(identity.token_ids)
    marks = tuple(int.from_bytes(payload[i * 4 : i * 4 + 4], "little") for i in range(count))
    return ScriptedSegment(identity, marks, data_bytes)


def _header(identity: SegmentIdentity, crc: int) -> bytes:
    """Begins like a real file, so that it is recognised as one of Keepwarm's."""
    fields = [identity.key, identity.parent_key, identity.start_tokens, identity.fingerprint, crc]
    metadata = {"__metadata__": {"format": f"{FORMAT_NAME}scripted", "fields": fields}}
    text = json.dumps(metadata, separators=(",", ":")).encode() + b"\n"
    return len(text).to_bytes(8, "little") + text
