"""Segments are read ahead, given in their order, never more than the bound, and a bad one where it stands."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from model_runtime.interface.errors import SegmentRefused
from model_runtime.interface.protocol import Segment
from model_runtime.interface.segments import SegmentIdentity, identify
from sessions.memory.moves import segment_reader
from sessions.memory.moves.segment_reader import SegmentReader
from tests.polling import pause, until


@dataclass(frozen=True)
class Rows:
    identity: SegmentIdentity
    data_bytes: int = 1


def chain(count: int, tokens: int = 10) -> list[SegmentIdentity]:
    identities: list[SegmentIdentity] = []
    for number in range(count):
        identities.append(identify(identities[-1] if identities else None, (number,) * tokens, "f"))
    return identities


def taken(found: SegmentReader) -> list[SegmentIdentity]:
    segments: list[Segment] = []
    while batch := found.take():
        segments += batch
    return [segment.identity for segment in segments]


def test_in_their_order_whichever_is_read_first() -> None:
    identities = chain(12)

    def load(identity: SegmentIdentity) -> Rows:
        pause(0.02 if identity is identities[0] else 0.001 * (identity.start_tokens % 3))
        return Rows(identity)

    with SegmentReader(identities, load, 1) as found:
        assert taken(found) == identities
        assert found.take() == []
    assert found.reading_s >= 0.02


def test_what_arrived_between_reads_is_given_together() -> None:
    identities, came = chain(5), threading.Semaphore(0)

    def load(identity: SegmentIdentity) -> Rows:
        came.release()
        return Rows(identity)

    with SegmentReader(identities, load, 1) as found:
        for _ in identities:
            assert came.acquire(timeout=5)
        pause(0.05)
        assert len(found.take()) == 5


def test_no_more_is_in_memory_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_reader, "AHEAD_BYTES", 30)
    identities, lock = chain(9), threading.Lock()
    begun, done, most = 0, 0, 0

    def load(identity: SegmentIdentity) -> Rows:
        nonlocal begun, most
        with lock:
            begun += 1
            most = max(most, begun - done)
        return Rows(identity)

    with SegmentReader(identities, load, 1) as found:
        while batch := found.take():
            pause(0.02)
            with lock:
                done += len(batch)
    assert (begun, done) == (9, 9)
    assert most <= 3


def test_one_that_is_larger_than_the_bound_still_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_reader, "AHEAD_BYTES", 5)
    identities = chain(3)
    with SegmentReader(identities, Rows, 1) as found:
        assert taken(found) == identities


def test_a_refused_one_is_told_its_place() -> None:
    identities = chain(6)

    def load(identity: SegmentIdentity) -> Rows:
        if identity is identities[2]:
            raise SegmentRefused("damaged")
        pause(0.01 if identity is identities[1] else 0)
        return Rows(identity)

    given = 0
    with SegmentReader(identities, load, 1) as found:
        while given < 2:
            given += len(found.take())
        with pytest.raises(SegmentRefused, match="damaged"):
            found.take()
    assert given == 2


def test_readers_end_with_the_restore() -> None:
    before = threading.active_count()
    with SegmentReader(chain(50), Rows, segment_reader.AHEAD_BYTES) as found:
        found.take()
    until(lambda: threading.active_count() <= before, timeout_s=5)
