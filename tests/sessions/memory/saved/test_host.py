"""The host tier: a KV has one owning tier at a time, budgets hold while KVs move, and a KV moves completely or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from model_runtime.interface.segments import identify
from sessions.errors import StoreError
from sessions.memory.saved.host import Host
from sessions.types import MemoryRow, Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.scripted_kv import ScriptedSegment
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

KIB, MIB = 1024, 1024 * 1024


@pytest.fixture
def make_hosted(make_harness: MakeHarness) -> Callable[..., SessionHarness]:
    """Room for one conversation on the device and some in host memory; no disk unless asked for."""
    return lambda **settings: make_harness(**{"host_kv_budget_bytes": 4 * MIB, "budget_bytes": 640 * KIB, **settings})


def rows(harness: SessionHarness) -> dict[str, MemoryRow]:
    return {row.conversation_id: row for row in harness.manager.memory_view(ADA).rows}


def fed_only_the_delta(harness: SessionHarness, c: str, tier: Tier, text: str = "And then?") -> None:
    message = harness.say(c, text)
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert (receipt.tier_before, receipt.miss_reason) == (tier, None)
    assert receipt.fed_tokens == receipt.delta_tokens < receipt.reused_tokens
    assert receipt.restored_bytes > 0
    place = "host memory" if tier is Tier.HOST else "disk"
    assert f"from {place} was expected to take" in receipt.choice


def test_an_evicted_kv_moves_to_host_memory_and_back(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted()
    a = harness.conversation(max_new_tokens=100)
    harness.say(a, LONG)
    b = harness.conversation(max_new_tokens=100)
    harness.say(b, LONG + "b")
    memory, row = harness.manager.memory_view(ADA), rows(harness)[a]
    assert (row.tier, row.kv_tokens, row.host_tokens) == (Tier.HOST, 0, len(harness.ledger(a)) - 1)
    assert memory.host_used_bytes == row.host_bytes == row.host_tokens * KIB
    assert (memory.host_reserved_bytes, memory.host_budget_bytes) == (0, 4 * MIB)
    assert row.next_ttft_s < row.cold_ttft_s
    assert any(
        e.text.startswith("Moved A long message") and "to host memory to make room: 0." in e.text for e in memory.events
    )
    fed_only_the_delta(harness, a, Tier.HOST)
    assert rows(harness)[a].host_bytes == 0  # the device owns it now
    assert rows(harness)[b].tier is Tier.HOST
    assert harness.engine.peak_bytes <= 640 * KIB


def test_a_kv_that_does_not_fit_host_memory_is_on_disk(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted(host_kv_budget_bytes=500 * KIB, disk_kv_budget_bytes=64 * MIB)
    started = []
    for number in range(4):
        c = harness.conversation(max_new_tokens=100)
        harness.say(c, f"{number} {LONG}")
        harness.saved(c)
        started.append(c)
        assert harness.manager.memory_view(ADA).host_used_bytes <= 500 * KIB
    tiers = [rows(harness)[c].tier for c in started]
    assert tiers == [Tier.DISK, Tier.DISK, Tier.HOST, Tier.DEVICE]
    fed_only_the_delta(harness, started[0], Tier.DISK)
    harness.close()
    harness = make_hosted(host_kv_budget_bytes=500 * KIB, disk_kv_budget_bytes=64 * MIB)
    fed_only_the_delta(harness, started[2], Tier.DISK)  # host memory did not survive the restart, the disk did


def test_a_chain_may_begin_on_disk_and_end_in_host_memory(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation(max_new_tokens=60)
    harness.say(c, LONG)
    harness.saved(c)
    harness.engine.fail_save = lambda identity: "No space left on device."
    harness.say(c, "Second")
    harness.manager.park(ADA, c, "host")
    first = min(harness.manager.memory.host.of_conversation(c), key=lambda saved: saved.start_tokens)
    harness.manager.memory.host.release(c, [first.key])
    fed_only_the_delta(harness, c, Tier.DISK)


def test_parked_by_hand_to_host_then_to_disk(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation(max_new_tokens=60)
    harness.engine.fail_save = lambda identity: "No space left on device."
    harness.say(c, LONG)
    harness.manager.park(ADA, c, "host")
    assert rows(harness)[c].tier is Tier.HOST
    assert harness.engine.allocated_bytes == 0
    assert any("to host memory: 0." in event.text for event in harness.manager.memory_view(ADA).events)
    with pytest.raises(StoreError, match="stays in host memory"):
        harness.manager.park(ADA, c, "disk")
    harness.engine.fail_save = lambda identity: None
    harness.manager.park(ADA, c, "disk")
    assert (rows(harness)[c].tier, harness.manager.memory_view(ADA).host_used_bytes) == (Tier.DISK, 0)
    fed_only_the_delta(harness, c, Tier.DISK)


def test_a_kv_larger_than_host_memory_is_refused_with_the_numbers(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted(host_kv_budget_bytes=100 * KIB)
    c = harness.conversation(max_new_tokens=40)
    harness.say(c, LONG)
    with pytest.raises(StoreError, match=r"has 0\.\d MiB, and of the 0\.1 MiB host budget 0\.0 MiB are used"):
        harness.manager.park(ADA, c, "host")
    assert rows(harness)[c].tier is Tier.DEVICE
    with pytest.raises(StoreError, match="disk budget is 0"):
        harness.manager.park(ADA, c, "disk")


def test_saved_from_host_memory_when_the_kv_left_before_it_was_saved(
    make_hosted: Callable[..., SessionHarness],
) -> None:
    harness = make_hosted(disk_kv_budget_bytes=64 * MIB, save_patience_s=0.0)
    harness.engine.save_delay_s = 0.1
    a = harness.conversation(max_new_tokens=100)
    harness.say(a, LONG)
    b = harness.conversation(max_new_tokens=100)
    harness.say(b, LONG + "b")
    harness.saved(a)
    harness.saved(b)


def test_opening_a_conversation_brings_it_back_from_host_memory(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted()
    c = harness.conversation(max_new_tokens=60)
    harness.say(c, LONG)
    harness.manager.park(ADA, c, "host")
    assert harness.manager.prepare(ADA, c)
    until(lambda: rows(harness)[c].tier is Tier.DEVICE and harness.manager.memory_view(ADA).host_used_bytes == 0)


def test_another_branch_stays_until_memory_is_needed(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation(max_new_tokens=60)
    harness.say(c, LONG)
    second = harness.say(c, "Second")
    harness.manager.park(ADA, c, "host")
    finish(harness.manager.edit(ADA, c, harness.manager.view(ADA, c).messages[2].message_id, "Another"))
    harness.manager.park(ADA, c, "host")
    harness.manager.switch_sibling(ADA, c, harness.manager.view(ADA, c).messages[2].message_id, -1)
    assert harness.texts(c)[-1] == second.text
    message = harness.say(c, "Back on the first branch")
    assert message.text == harness.expected_text(c)
    assert harness.receipt(message).miss_reason is None


def test_deleting_and_dropping_leave_nothing_in_host_memory(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted()
    for act in (harness.manager.delete, harness.manager.drop_kv):
        c = harness.conversation(max_new_tokens=60)
        harness.say(c, LONG)
        harness.manager.park(ADA, c, "host")
        assert harness.manager.memory_view(ADA).host_used_bytes > 0
        act(ADA, c)
        assert harness.manager.memory_view(ADA).host_used_bytes == 0


def segment(name: str, size: int) -> ScriptedSegment:
    return ScriptedSegment(identify(None, tuple(name.encode()), "model"), (), size)


def test_a_turn_of_one_user_takes_only_host_memory_beyond_the_shares_of_others() -> None:
    host = Host(100, lost_s=lambda start, tokens, key: float(tokens))
    for owner, count in (("eve", 6), (ADA, 2)):
        for number in range(count):
            assert host.reserve(owner, owner, 10)
            host.put(owner, owner, ScriptedSegment(identify(None, (number,), owner), (0,), 10), 10)
    assert host.reserve(ADA, "another of hers", 40)  # 20 are free, and 35 of eve's 60 exceed her share of 25
    assert host.by_conversation()["eve"].size_bytes == 40
    assert not host.reserve(ADA, "one more", 50)  # 20 of ada's own, and eve's down to her share of 25
    assert host.by_conversation()["eve"].size_bytes == 40
    assert host.reserve(ADA, "one more", 40)
    assert {c: saved.size_bytes for c, saved in host.by_conversation().items()} == {"eve": 20}


def test_reserved_and_used_bytes_are_separate_and_together_within_the_budget() -> None:
    host = Host(100, lost_s=lambda start, tokens, key: float(tokens))
    assert host.reserve(ADA, "a", 60)
    assert (host.used_bytes, host.reserved_bytes) == (0, 60)
    assert not host.reserve(ADA, "b", 50)
    host.put("ada", "a", segment("a", 60), 60)
    assert (host.used_bytes, host.reserved_bytes) == (60, 0)
    assert not host.reserve(ADA, "b", 101)
    assert host.used_bytes == 60  # nothing is evicted for what can never fit
    with host.using("a"):
        assert not host.reserve(ADA, "b", 50)
    assert host.reserve(ADA, "b", 50)
    assert (host.used_bytes, host.reserved_bytes) == (0, 50)
    host.cancel(50)
    assert host.reserve(ADA, "c", 100)


def test_a_failed_copy_gives_back_its_memory(make_hosted: Callable[..., SessionHarness]) -> None:
    harness = make_hosted()
    c = harness.conversation(max_new_tokens=60)
    harness.say(c, LONG)
    stage = harness.engine.stage

    def broken(*arguments: object, **named: object) -> object:
        raise ValueError("the KV does not hold the tokens of this segment")

    harness.engine.stage = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(StoreError):
        harness.manager.park(ADA, c, "host")
    memory = harness.manager.memory_view(ADA)
    assert (memory.host_used_bytes, memory.host_reserved_bytes) == (0, 0)
    harness.engine.stage = stage  # type: ignore[method-assign]
    harness.manager.park(ADA, c, "host")
