"""Many small files become one while they are unused, and a crash in between costs nothing."""

from __future__ import annotations

import pytest

import sessions.memory.moves.save
from sessions.memory.saved.compaction import find_run
from sessions.store.tables.segments import SavedSegment
from sessions.types import Tier
from tests.sessions.conftest import MakeHouse
from tests.sessions.house import ADA, House, finish, until
from tests.sessions.memory.test_memory import LONG

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
def small_files(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> tuple[House, str]:
    """Six short turns, each saved in its own file."""
    monkeypatch.setattr(sessions.memory.moves.save, "IDLE_S", 3600.0)
    house = make_house(disk_kv_budget_bytes=64 * MIB)
    c = house.conversation()
    for number in range(6):
        house.say(c, f"Message {number}")
        house.saved(c)
    assert len(house.files()) == 6
    return house, c


def test_a_compacted_conversation_is_fed_only_its_delta(
    small_files: tuple[House, str], make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, c = small_files
    ids = house.ledger(c)[:-1]
    house.close()
    monkeypatch.setattr(sessions.memory.moves.save, "IDLE_S", 0.05)
    house = make_house(disk_kv_budget_bytes=64 * MIB)
    until(lambda: len(house.files()) == 1)
    disk = house.manager.memory.saved_kvs.disk
    until(lambda: len(house.store.segments.every()) == 1)
    assert disk.chain(ADA, c, ids).useful_tokens == len(ids)
    assert house.manager.memory_view(ADA).disk_used_bytes == house.files()[0].stat().st_size
    message = house.say(c, "And now?")
    receipt = house.receipt(message)
    assert message.text == house.expected_text(c)
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DISK, receipt.delta_tokens)
    edited = finish(house.manager.edit(ADA, c, house.manager.view(ADA, c).messages[4].message_id, "Other"))
    assert edited.text == house.expected_text(c)
    house.manager.delete(ADA, c)
    assert house.files() == []


@pytest.mark.parametrize("point", ["before the rows", "before the old files"])
def test_a_crash_while_compacting_costs_nothing(
    small_files: tuple[House, str], make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    house, c = small_files
    disk = house.manager.memory.saved_kvs.disk

    def crash(*arguments: object) -> bool:
        raise KeyboardInterrupt

    target = disk._table if point == "before the rows" else disk  # noqa: SLF001 - a fault between the file and its rows
    monkeypatch.setattr(target, "replace" if point == "before the rows" else "_delete_files", crash)
    with pytest.raises(KeyboardInterrupt):
        disk.compact(1000)
    assert len(house.files()) == 7
    monkeypatch.undo()
    monkeypatch.setattr(sessions.memory.moves.save, "IDLE_S", 3600.0)
    house.close()
    house = make_house(disk_kv_budget_bytes=64 * MIB)
    assert len(house.files()) == (6 if point == "before the rows" else 1)
    message = house.say(c, "And now?")
    assert message.text == house.expected_text(c)
    assert house.receipt(message).fed_tokens == house.receipt(message).delta_tokens


def test_nothing_in_use_is_compacted(small_files: tuple[House, str]) -> None:
    house, c = small_files
    disk = house.manager.memory.saved_kvs.disk
    with disk.using(c):
        assert not disk.compact(1000)
    assert len(house.files()) == 6
    assert disk.compact(1000)
    assert len(house.files()) == 1
    house.say(c, LONG)
    house.saved(c)
