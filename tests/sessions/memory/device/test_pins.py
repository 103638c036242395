"""A pinned KV stays on the device, across restarts; what does not fit beside it is refused with the numbers."""

from __future__ import annotations

import pytest

from sessions.errors import CacheFull, ConversationBusy, ConversationNotFound
from sessions.types import MemoryRow, Tier
from tests.sessions.conftest import MakeHouse
from tests.sessions.house import ADA, House, until
from tests.sessions.memory.test_memory import LONG

KIB, MIB = 1024, 1024 * 1024


def rows(house: House) -> dict[str, MemoryRow]:
    return {row.conversation_id: row for row in house.manager.memory_view(ADA).rows}


def test_a_pinned_kv_is_not_evicted(make_house: MakeHouse) -> None:
    house = make_house(budget_bytes=1000 * KIB)
    kept = house.conversation(max_new_tokens=40)
    house.say(kept, LONG)
    house.manager.pin(ADA, kept)
    for number in range(4):
        other = house.conversation(max_new_tokens=40)
        house.say(other, f"{number} {LONG}")
    assert rows(house)[kept].tier is Tier.DEVICE
    assert rows(house)[kept].is_pinned
    receipt = house.receipt(house.say(kept, "Still here?"))
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DEVICE, receipt.delta_tokens)
    house.manager.unpin(ADA, kept)
    for number in range(6):
        other = house.conversation(max_new_tokens=40)
        house.say(other, f"again {number} {LONG}")
    assert rows(house)[kept].tier is Tier.NONE
    assert house.engine.peak_bytes <= 1000 * KIB


def test_more_than_half_of_the_budget_is_not_pinned(make_house: MakeHouse) -> None:
    house = make_house(budget_bytes=1000 * KIB)
    first, second = house.conversation(max_new_tokens=40), ""
    house.say(first, LONG)
    second = house.conversation(max_new_tokens=40)
    house.say(second, LONG)
    house.manager.pin(ADA, first)
    with pytest.raises(CacheFull, match=r"needs 0\.\d MiB on the device, and 0\.\d MiB are pinned already; 0\.5 MiB"):
        house.manager.pin(ADA, second)
    assert not rows(house)[second].is_pinned
    view = house.manager.memory_view(ADA)
    assert 0 < view.pinned_bytes <= view.pin_limit_bytes == 500 * KIB


def test_a_turn_that_does_not_fit_beside_the_pins_is_refused_before_it_is_stored(make_house: MakeHouse) -> None:
    house = make_house(budget_bytes=1000 * KIB)
    kept = house.conversation(max_new_tokens=40)
    house.say(kept, LONG)
    house.manager.pin(ADA, kept)
    other = house.conversation(max_new_tokens=600)
    with pytest.raises(CacheFull, match=r"0\.6 MiB are not pinned or guaranteed"):
        house.manager.send(ADA, other, LONG)
    assert house.texts(other) == []
    house.manager.unpin(ADA, kept)
    house.say(other, LONG)


def test_a_pinned_conversation_grows_only_as_far_as_may_be_pinned(make_house: MakeHouse) -> None:
    house = make_house(budget_bytes=1000 * KIB)
    kept = house.conversation(max_new_tokens=40)
    house.say(kept, LONG)
    house.manager.pin(ADA, kept)
    with pytest.raises(CacheFull, match="is pinned, and this turn may grow it to"):
        house.manager.send(ADA, kept, LONG)
    house.manager.unpin(ADA, kept)
    house.say(kept, LONG)


def test_nothing_is_pinned_in_the_way_of_a_turn_that_was_let_in(make_house: MakeHouse) -> None:
    house = make_house(budget_bytes=1000 * KIB)
    kept = house.conversation(max_new_tokens=40)
    house.say(kept, LONG)
    house.engine.token_delay_s = 0.02
    large = house.conversation(max_new_tokens=500)
    run = house.manager.send(ADA, large, LONG)
    with pytest.raises(CacheFull, match=r"was promised 0\.8 MiB of the 1\.0 MiB"):
        house.manager.pin(ADA, kept)
    with pytest.raises(ConversationBusy):
        house.manager.pin(ADA, large)
    house.manager.stop(ADA, large)
    until(lambda: run.is_done)


def test_pins_survive_a_restart_and_come_back_to_the_device(make_house: MakeHouse) -> None:
    house = make_house(disk_kv_budget_bytes=64 * MIB)
    c = house.conversation(max_new_tokens=40)
    house.say(c, LONG)
    house.manager.pin(ADA, c)
    house.close()
    house = make_house(disk_kv_budget_bytes=64 * MIB)
    until(lambda: rows(house)[c].tier is Tier.DEVICE)
    assert rows(house)[c].is_pinned
    assert house.manager.view(ADA, c).summary.is_pinned
    house.close()
    house = make_house(disk_kv_budget_bytes=64 * MIB, budget_bytes=200 * KIB)  # it does not fit any more
    assert not rows(house)[c].is_pinned
    assert any("may be pinned under this start's budget" in e.text for e in house.manager.memory_view(ADA).events)


def test_what_is_pinned_is_neither_parked_nor_dropped(make_house: MakeHouse) -> None:
    house = make_house(disk_kv_budget_bytes=64 * MIB)
    c = house.conversation()
    house.say(c, LONG)
    house.manager.pin(ADA, c)
    for act in (house.manager.park, house.manager.drop_kv):
        with pytest.raises(ConversationBusy, match="Unpin it first"):
            act(ADA, c)
    house.manager.unpin(ADA, c)
    house.manager.park(ADA, c, "disk")
    assert rows(house)[c].tier is Tier.DISK
    house.manager.pin(ADA, c)  # brings it back
    until(lambda: rows(house)[c].tier is Tier.DEVICE)
    house.manager.delete(ADA, c)
    assert house.manager.memory_view(ADA).pinned_bytes == 0


def test_strangers_pin_nothing(make_house: MakeHouse) -> None:
    house = make_house()
    c = house.conversation()
    for act in (house.manager.pin, house.manager.unpin, house.manager.park):
        with pytest.raises(ConversationNotFound):
            act("eve", c)
