"""What is expected of a remote engine comes from what it reported, and from nothing else."""

from __future__ import annotations

from sessions.memory.engine_hits import REMEMBERED_TURNS, EngineHits
from sessions.types import EngineHit


class Watch:
    def __init__(self) -> None:
        self.at = 100.0
        self.hits = EngineHits(lambda: self.at, lambda: 5000.0 + self.at)

    def turn(self, conversation_id: str, after_s: float, kept_tokens: int, reused_tokens: int) -> None:
        self.at += after_s
        self.hits.reported(conversation_id, kept_tokens, reused_tokens)

    def likely(self, conversation_id: str, after_s: float) -> bool | None:
        at, self.at = self.at, self.at + after_s
        found = self.hits.of(conversation_id)
        self.at = at
        assert found is not None
        return found.is_likely


def test_nothing_is_known_before_the_second_turn() -> None:
    watch = Watch()
    assert watch.hits.of("a") is None
    watch.turn("a", 0, 0, 0)
    assert watch.hits.of("a") == EngineHit(5100.0, 0, 0, None)


def test_hits_make_hits_likely_and_misses_unlikely() -> None:
    watch = Watch()
    watch.turn("a", 0, 0, 0)
    watch.turn("a", 60, 100, 100)
    assert [watch.likely("a", after_s) for after_s in (0, 60, 61)] == [True, True, None]
    watch.turn("a", 600, 150, 0)
    assert [watch.likely("a", after_s) for after_s in (60, 61, 599, 600, 5000)] == [True, None, None, False, False]


def test_half_of_it_is_a_hit_and_less_is_a_miss() -> None:
    for reused_tokens, is_likely in ((50, True), (49, False)):
        watch = Watch()
        watch.turn("a", 0, 0, 0)
        watch.turn("a", 10, 100, reused_tokens)
        assert watch.likely("a", 10) is is_likely


def test_old_turns_and_deleted_conversations_are_forgotten() -> None:
    watch = Watch()
    watch.turn("a", 0, 0, 0)
    watch.turn("a", 1, 100, 0)
    assert watch.likely("a", 1) is False
    for _ in range(REMEMBERED_TURNS):
        watch.turn("a", 2, 100, 100)
    assert watch.likely("a", 1) is True
    watch.hits.forget("a")
    assert watch.hits.of("a") is None
