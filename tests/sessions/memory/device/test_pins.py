"""A pinned KV stays on the device, across restarts; what does not fit beside it is refused with the numbers."""

from __future__ import annotations

import pytest

from sessions.errors import CacheFull, ConversationBusy, ConversationNotFound
from sessions.types import MemoryRow, Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.memory.test_memory import LONG
from tests.sessions.session_harness import ADA, SessionHarness, until

KIB, MIB = 1024, 1024 * 1024


def rows(harness: SessionHarness) -> dict[str, MemoryRow]:
    return {row.conversation_id: row for row in harness.manager.memory_view(ADA).rows}


def test_a_pinned_kv_is_not_evicted(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=1000 * KIB)
    kept = harness.conversation(max_new_tokens=40)
    harness.say(kept, LONG)
    harness.manager.pin(ADA, kept)
    for number in range(4):
        other = harness.conversation(max_new_tokens=40)
        harness.say(other, f"{number} {LONG}")
    assert rows(harness)[kept].tier is Tier.DEVICE
    assert rows(harness)[kept].is_pinned
    receipt = harness.receipt(harness.say(kept, "Still here?"))
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DEVICE, receipt.delta_tokens)
    harness.manager.unpin(ADA, kept)
    for number in range(6):
        other = harness.conversation(max_new_tokens=40)
        harness.say(other, f"again {number} {LONG}")
    assert rows(harness)[kept].tier is Tier.NONE
    assert harness.engine.peak_bytes <= 1000 * KIB


def test_more_than_half_of_the_budget_is_not_pinned(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=1000 * KIB)
    first, second = harness.conversation(max_new_tokens=40), ""
    harness.say(first, LONG)
    second = harness.conversation(max_new_tokens=40)
    harness.say(second, LONG)
    harness.manager.pin(ADA, first)
    with pytest.raises(CacheFull, match=r"needs 0\.\d MiB on the device, and 0\.\d MiB are pinned already; 0\.5 MiB"):
        harness.manager.pin(ADA, second)
    assert not rows(harness)[second].is_pinned
    view = harness.manager.memory_view(ADA)
    assert 0 < view.pinned_bytes <= view.pin_limit_bytes == 500 * KIB


def test_a_turn_that_does_not_fit_beside_the_pins_is_refused_before_it_is_stored(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=1000 * KIB)
    kept = harness.conversation(max_new_tokens=40)
    harness.say(kept, LONG)
    harness.manager.pin(ADA, kept)
    other = harness.conversation(max_new_tokens=600)
    with pytest.raises(CacheFull, match=r"0\.6 MiB are not pinned or guaranteed"):
        harness.manager.send(ADA, other, LONG)
    assert harness.texts(other) == []
    harness.manager.unpin(ADA, kept)
    harness.say(other, LONG)


def test_a_pinned_conversation_grows_only_as_far_as_may_be_pinned(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=1000 * KIB)
    kept = harness.conversation(max_new_tokens=40)
    harness.say(kept, LONG)
    harness.manager.pin(ADA, kept)
    with pytest.raises(CacheFull, match="is pinned, and this turn may grow it to"):
        harness.manager.send(ADA, kept, LONG)
    harness.manager.unpin(ADA, kept)
    harness.say(kept, LONG)


def test_no_pin_takes_the_memory_of_an_admitted_turn(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=1000 * KIB)
    kept = harness.conversation(max_new_tokens=40)
    harness.say(kept, LONG)
    harness.engine.token_delay_s = 0.02
    large = harness.conversation(max_new_tokens=500)
    run = harness.manager.send(ADA, large, LONG)
    with pytest.raises(CacheFull, match=r"was promised 0\.8 MiB of the 1\.0 MiB"):
        harness.manager.pin(ADA, kept)
    with pytest.raises(ConversationBusy):
        harness.manager.pin(ADA, large)
    harness.manager.stop(ADA, large)
    until(lambda: run.is_done)


def test_pins_survive_a_restart_and_come_back_to_the_device(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation(max_new_tokens=40)
    harness.say(c, LONG)
    harness.manager.pin(ADA, c)
    harness.close()
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    until(lambda: rows(harness)[c].tier is Tier.DEVICE)
    assert rows(harness)[c].is_pinned
    assert harness.manager.view(ADA, c).summary.is_pinned
    harness.close()
    harness = make_harness(disk_kv_budget_bytes=64 * MIB, budget_bytes=200 * KIB)  # it does not fit any more
    assert not rows(harness)[c].is_pinned
    assert any("may be pinned under this start's budget" in e.text for e in harness.manager.memory_view(ADA).events)


def test_what_is_pinned_is_neither_parked_nor_dropped(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    c = harness.conversation()
    harness.say(c, LONG)
    harness.manager.pin(ADA, c)
    for act in (harness.manager.park, harness.manager.drop_kv):
        with pytest.raises(ConversationBusy, match="Unpin it first"):
            act(ADA, c)
    harness.manager.unpin(ADA, c)
    harness.manager.park(ADA, c, "disk")
    assert rows(harness)[c].tier is Tier.DISK
    harness.manager.pin(ADA, c)  # brings it back
    until(lambda: rows(harness)[c].tier is Tier.DEVICE)
    harness.manager.delete(ADA, c)
    assert harness.manager.memory_view(ADA).pinned_bytes == 0


def test_strangers_pin_nothing(make_harness: MakeHarness) -> None:
    harness = make_harness()
    c = harness.conversation()
    for act in (harness.manager.pin, harness.manager.unpin, harness.manager.park):
        with pytest.raises(ConversationNotFound):
            act("eve", c)
