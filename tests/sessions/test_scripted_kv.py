"""The scripted engine's segments are restored completely or not at all, and a row in the wrong place is noticed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_runtime.interface.errors import EngineClosed, SegmentRefused
from model_runtime.interface.segments import identify
from tests.sessions.scripted_engine import ScriptedEngine

IDS = tuple(range(100, 140))


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    engine = ScriptedEngine()
    yield engine
    engine.close()


def test_there_and_back(engine: ScriptedEngine, tmp_path: Path) -> None:
    first = identify(None, IDS[:25], "m")
    kv, back = engine.new_kv(), engine.new_kv()
    kv.append(IDS)
    for identity in (first, identify(first, IDS[25:], "m")):
        path = tmp_path / identity.key
        assert engine.save(engine.stage(kv, identity), path) == path.stat().st_size > engine.segment_bytes(15)
        engine.restore(back, [engine.load(identity, path)])
    assert (back.tokens, back.marks) == (kv.tokens, kv.marks)
    back.check()


def test_every_flipped_bit_and_every_cut_is_refused(engine: ScriptedEngine, tmp_path: Path) -> None:
    kv, identity, path, dice = engine.new_kv(), identify(None, IDS, "m"), tmp_path / "file", random.Random(3)
    kv.append(IDS)
    engine.save(engine.stage(kv, identity), path)
    whole = path.read_bytes()
    for _ in range(50):
        torn = bytearray(whole)
        torn[dice.randrange(len(torn))] ^= 1 << dice.randrange(8)
        path.write_bytes(torn if dice.random() < 0.7 else whole[: dice.randrange(len(whole))])
        with pytest.raises(SegmentRefused):
            engine.load(identity, path)


def test_what_the_kv_does_not_hold_is_not_staged(engine: ScriptedEngine) -> None:
    kv = engine.new_kv()
    kv.append(IDS[:10])
    with pytest.raises(ValueError, match="does not hold"):
        engine.stage(kv, identify(None, IDS, "m"))
    engine.close()
    with pytest.raises(EngineClosed):
        engine.stage(kv, identify(None, IDS[:10], "m"))


def test_a_row_from_elsewhere_is_noticed(engine: ScriptedEngine) -> None:
    kv, other = engine.new_kv(), engine.new_kv()
    kv.append(IDS)
    segment = engine.stage(kv, identify(identify(None, IDS[:5], "m"), IDS[5:9], "m"))
    other.append((1, 2, 3, 4, 5))
    engine.restore(other, [segment])
    with pytest.raises(AssertionError):
        other.check()
