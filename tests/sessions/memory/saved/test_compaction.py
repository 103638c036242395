"""Many small files become one while they are unused, and a crash in between costs nothing."""

from __future__ import annotations

import pytest

import sessions.memory.moves.save
from sessions.memory.saved.compaction import find_run
from sessions.store.tables.segments import SavedSegment
from sessions.types import Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MIB = 1024 * 1024


def saved(key: str, parent: str, tokens: int = 10, users: tuple[str, ...] = ("c",)) -> SavedSegment:
    return SavedSegment(key, parent, "ada", "model", 0, tokens, tokens, 0.0, users)


def keys(run: tuple[SavedSegment, ...]) -> str:
    return "".join(segment.key for segment in run)


def test_only_long_enough_ends_are_joined() -> None:
    line = [saved("a", ""), saved("b", "a"), saved("c", "b"), saved("d", "c"), saved("e", "d")]
    assert keys(find_run(line, 1000)) == "abcde"
    assert keys(find_run(line, 45)) == "bcde"
    assert find_run(line, 35) == ()
    assert find_run(line[:3], 1000) == ()


def test_a_branch_ends_a_run() -> None:
    line = [saved("a", ""), saved("b", "a"), saved("c", "b"), saved("d", "c"), saved("e", "d"), saved("x", "a")]
    assert keys(find_run(line, 1000)) == "bcde"
    assert find_run([*line, saved("y", "c")], 1000) == ()


def test_segments_that_others_refer_to_are_not_joined() -> None:
    line = [saved("a", "", users=("c", "other")), *(saved(k, p) for k, p in ("ba", "cb", "dc", "ed"))]
    assert keys(find_run(line, 1000)) == "bcde"


@pytest.fixture
def small_files(make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> tuple[SessionHarness, str]:
    """Six short turns, each saved in its own file."""
    monkeypatch.setattr(sessions.memory.moves.save, "IDLE_S", 3600.0)
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    for number in range(6):
        harness.say(c, f"Message {number}")
        harness.saved(c)
    assert len(harness.files()) == 6
    return harness, c


def test_a_compacted_conversation_is_fed_only_its_delta(
    small_files: tuple[SessionHarness, str], make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness, c = small_files
    ids = harness.ledger(c)[:-1]
    harness.close()
    monkeypatch.setattr(sessions.memory.moves.save, "IDLE_S", 0.05)
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    until(lambda: len(harness.files()) == 1)
    disk = harness.manager.memory.saved_kvs.disk
    until(lambda: len(harness.store.segments.every()) == 1)
    assert disk.chain(ADA, c, ids).useful_tokens == len(ids)
    assert harness.manager.memory_view(ADA).disk_used_bytes == harness.files()[0].stat().st_size
    message = harness.say(c, "And now?")
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DISK, receipt.delta_tokens)
    edited = finish(harness.manager.edit(ADA, c, harness.manager.view(ADA, c).messages[4].message_id, "Other"))
    assert edited.text == harness.expected_text(c)
    harness.manager.delete(ADA, c)
    assert harness.files() == []


@pytest.mark.parametrize("point", ["before the rows", "before the old files"])
def test_a_crash_while_compacting_costs_nothing(
    small_files: tuple[SessionHarness, str], make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    harness, c = small_files
    disk = harness.manager.memory.saved_kvs.disk

    def crash(*arguments: object) -> bool:
        raise KeyboardInterrupt

    target = disk._table if point == "before the rows" else disk  # noqa: SLF001 - a fault between the file and its rows
    monkeypatch.setattr(target, "replace" if point == "before the rows" else "_delete_files", crash)
    with pytest.raises(KeyboardInterrupt):
        disk.compact(1000)
    assert len(harness.files()) == 7
    monkeypatch.undo()
    monkeypatch.setattr(sessions.memory.moves.save, "IDLE_S", 3600.0)
    harness.close()
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    assert len(harness.files()) == (6 if point == "before the rows" else 1)
    message = harness.say(c, "And now?")
    assert message.text == harness.expected_text(c)
    assert harness.receipt(message).fed_tokens == harness.receipt(message).delta_tokens


def test_nothing_in_use_is_compacted(small_files: tuple[SessionHarness, str]) -> None:
    harness, c = small_files
    disk = harness.manager.memory.saved_kvs.disk
    with disk.using(c):
        assert not disk.compact(1000)
    assert len(harness.files()) == 6
    assert disk.compact(1000)
    assert len(harness.files()) == 1
    harness.say(c, LONG)
    harness.saved(c)
