"""KVs that outlive eviction and restarts: written through to disk, shared by branches, restored when that pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sessions.errors import ConversationBusy, StoreError
from sessions.types import MissReason, Tier
from tests.sessions.conftest import MakeHouse
from tests.sessions.house import ADA, House, finish, until
from tests.sessions.scripted_engine import ScriptedEngine

MIB = 1024 * 1024
LONG = "A long message that is worth saving, because reading it again takes a while. " * 4


@pytest.fixture
def make_warm(make_house: MakeHouse) -> Callable[..., House]:
    """Houses that save to disk."""
    return lambda **settings: make_house(**{"disk_kv_budget_bytes": 64 * MIB, **settings})


def fed_only_the_delta(house: House, c: str, text: str = "And then?") -> None:
    message = house.say(c, text)
    receipt = house.receipt(message)
    assert message.text == house.expected_text(c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    assert receipt.fed_tokens == receipt.delta_tokens < receipt.reused_tokens
    assert receipt.restored_bytes >= receipt.reused_tokens * 1024
    assert receipt.restore_s > 0
    assert receipt.ttft_s is not None
    assert receipt.ttft_s >= receipt.restore_s
    assert receipt.choice.startswith("Restored: restoring ")


def test_the_first_turn_after_a_restart_is_fed_only_its_delta(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.say(c, "Go on.")
    house.saved(c)
    house.close()
    house = make_warm()
    assert house.manager.list_conversations(ADA)[0].tier is Tier.DISK
    fed_only_the_delta(house, c)
    house.close()  # flushes
    house = make_warm()
    fed_only_the_delta(house, c, "Once more.")


def test_close_saves_what_is_still_to_be_saved(make_warm: Callable[..., House]) -> None:
    house = make_warm(engine=ScriptedEngine(token_delay_s=0.05))
    house.engine.save_delay_s = 0.1
    c = house.conversation()
    run = house.manager.send(ADA, c, LONG)
    until(lambda: run.snapshot().sampled_tokens > 1)
    house.close()
    house = make_warm()
    message = finish(house.manager.continue_answer(ADA, c))
    assert message.text == house.expected_text(c)
    assert house.receipt(message).tier_before is Tier.DISK
    assert house.receipt(message).fed_tokens == house.receipt(message).delta_tokens


def test_an_evicted_conversation_comes_back_from_disk(make_warm: Callable[..., House]) -> None:
    house = make_warm(budget_bytes=640 * 1024)
    a = house.conversation(max_new_tokens=100)
    house.say(a, LONG)
    b = house.conversation(max_new_tokens=100)
    house.say(b, LONG + "b")  # there is room for one
    house.saved(a)
    rows = {row.conversation_id: row for row in house.manager.memory_view(ADA).rows}
    assert rows[a].tier is Tier.DISK
    assert rows[a].kv_tokens == 0
    assert rows[a].disk_tokens == len(house.ledger(a)) - 1
    assert rows[a].next_ttft_s < rows[a].cold_ttft_s
    fed_only_the_delta(house, a)
    fed_only_the_delta(house, b)
    events = [event.text for event in house.manager.memory_view(ADA).events]
    assert any(text.startswith("Restored A long message") for text in events)
    assert house.engine.peak_bytes <= 640 * 1024


def test_what_was_evicted_while_it_is_being_written_comes_back_from_memory(make_warm: Callable[..., House]) -> None:
    house = make_warm(budget_bytes=640 * 1024)
    house.engine.save_delay_s = 1.0
    a = house.conversation(max_new_tokens=100)
    house.say(a, LONG)
    b = house.conversation(max_new_tokens=100)
    house.say(b, LONG + "b")  # there is room for one
    row = next(r for r in house.manager.memory_view(ADA).rows if r.conversation_id == a)
    assert row.kv_tokens == 0
    assert row.disk_tokens < len(house.ledger(a)) - 1, "the writer was too quick for this test"
    fed_only_the_delta(house, a)


def test_branches_share_what_they_have_in_common(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.say(c, LONG + "Second")
    house.saved(c)
    alone_bytes = house.manager.memory_view(ADA).disk_used_bytes
    second = house.manager.view(ADA, c).messages[2]
    finish(house.manager.edit(ADA, c, second.message_id, LONG + "Another"))
    house.saved(c)
    assert house.manager.memory_view(ADA).disk_used_bytes < alone_bytes * 1.6
    house.close()
    house = make_warm()
    fed_only_the_delta(house, c)
    house.manager.switch_sibling(ADA, c, house.manager.view(ADA, c).messages[2].message_id, -1)
    fed_only_the_delta(house, c, "On the other branch.")  # the KV held the sibling


def test_a_regenerated_answer_shares_a_long_prompt(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.saved(c)
    assert len(house.files()) == 3  # the prompt in two pieces (`chains.BEGINNING_TOKENS`), and its answer
    house.engine.answer = lambda ledger: (*b"Something else", 259)
    finish(house.manager.regenerate(ADA, c))
    house.saved(c)
    assert len(house.files()) == 4
    house.manager.park(ADA, c)
    message = finish(house.manager.regenerate(ADA, c))
    assert house.receipt(message).tier_before is Tier.DISK
    assert house.receipt(message).fed_tokens == 1


def test_an_edit_after_a_restart_uses_the_beginning(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.say(c, "Second message")
    house.saved(c)
    house.close()
    house = make_warm()
    second = house.manager.view(ADA, c).messages[2]
    message = finish(house.manager.edit(ADA, c, second.message_id, "Second thoughts"))
    receipt = house.receipt(message)
    assert message.text == house.expected_text(c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    assert receipt.fed_tokens == receipt.delta_tokens < 30


def test_two_conversations_that_begin_alike_share_their_files(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    a = house.conversation()
    house.say(a, LONG)
    house.saved(a)
    files = house.files()
    b = house.conversation()
    house.say(b, LONG)
    house.saved(b)
    assert house.files() == files
    house.manager.delete(ADA, a)
    assert house.files() == files
    house.manager.park(ADA, b)
    fed_only_the_delta(house, b)
    house.manager.delete(ADA, b)
    assert house.files() == []


def test_dropping_by_hand_deletes_the_saved_copy_too(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.saved(c)
    assert house.files()
    house.manager.drop_kv(ADA, c)
    assert house.files() == []
    receipt = house.say(c, "And now?").receipt
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, MissReason.EVICTED)


def test_owners_share_nothing(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    conversations = {owner: house.conversation(owner) for owner in (ADA, "eve")}
    for owner, c in conversations.items():
        house.say(c, LONG, owner)
        house.saved(c, owner)
    keys = {owner: {s.key for s in house.store.segments.of_conversation(c)} for owner, c in conversations.items()}
    assert not keys[ADA] & keys["eve"]
    assert len(house.files()) == len(keys[ADA]) + len(keys["eve"])
    assert conversations["eve"] not in house.manager.memory.saved(ADA)


def test_deleting_a_conversation_deletes_its_files(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.saved(c)
    assert house.files()
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in house.files())
    assert house.store.kv_dir.stat().st_mode & 0o777 == 0o700
    house.manager.delete(ADA, c)
    assert house.files() == []
    assert house.manager.memory_view(ADA).disk_used_bytes == 0


def test_deleted_while_it_is_being_saved(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    house.engine.save_delay_s = 0.2
    c = house.conversation()
    house.say(c, LONG)
    house.manager.delete(ADA, c)
    house.close()
    assert house.files() == []


def test_park_saves_then_frees(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.manager.park(ADA, c)
    memory = house.manager.memory_view(ADA)
    assert (memory.rows[0].tier, memory.device_used_bytes, house.engine.allocated_bytes) == (Tier.DISK, 0, 0)
    assert memory.events[0].text.startswith("Parked the KV of ")
    house.manager.park(ADA, c)  # nothing left to park
    fed_only_the_delta(house, c)


def test_what_cannot_be_saved_is_not_parked(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    house.engine.fail_save = lambda identity: "No space left on device."
    c = house.conversation()
    house.say(c, LONG)
    with pytest.raises(StoreError, match="stays on the device"):
        house.manager.park(ADA, c)
    assert house.manager.memory_view(ADA).rows[0].tier is Tier.DEVICE


def test_without_a_disk_budget_nothing_is_saved(make_house: MakeHouse) -> None:
    house = make_house()
    c = house.conversation()
    house.say(c, LONG)
    with pytest.raises(StoreError, match="disk budget is 0"):
        house.manager.park(ADA, c)
    assert not house.manager.prepare(ADA, c)
    house.close()
    assert house.files() == []


def test_opening_a_conversation_restores_it(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.manager.park(ADA, c)
    assert house.manager.prepare(ADA, c)
    until(lambda: house.manager.memory_view(ADA).rows[0].tier is Tier.DEVICE)
    until(lambda: house.manager.memory_view(ADA).device_reserved_bytes == 0)
    assert not house.manager.prepare(ADA, c)  # it is there
    receipt = house.receipt(house.say(c, "Well?"))
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DEVICE, receipt.delta_tokens)


def test_opening_a_conversation_drops_nobody(make_warm: Callable[..., House]) -> None:
    house = make_warm(budget_bytes=640 * 1024)
    a, b = house.conversation(max_new_tokens=100), ""
    house.say(a, LONG)
    house.manager.park(ADA, a)
    b = house.conversation(max_new_tokens=100)
    house.say(b, LONG + "b")
    assert not house.manager.prepare(ADA, a)
    assert {r.conversation_id: r.tier for r in house.manager.memory_view(ADA).rows} == {a: Tier.DISK, b: Tier.DEVICE}


def test_a_message_sent_while_its_conversation_is_prepared(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.manager.park(ADA, c)
    house.engine.load_delay_s = 0.1
    assert house.manager.prepare(ADA, c)
    message = house.say(c, "Quick")
    receipt = house.receipt(message)
    assert message.text == house.expected_text(c)
    assert receipt.fed_tokens == receipt.delta_tokens


def test_deleted_while_it_is_prepared(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.manager.park(ADA, c)
    house.engine.load_delay_s = 0.2
    assert house.manager.prepare(ADA, c)
    house.manager.delete(ADA, c)
    assert house.files() == []
    until(lambda: house.engine.allocated_bytes == 0)


def test_a_restore_can_be_stopped(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    for number in range(6):
        house.say(c, f"{LONG} {number}")
    house.manager.park(ADA, c)
    house.engine.load_delay_s = 0.15
    run = house.manager.send(ADA, c, "And?")
    with pytest.raises(ConversationBusy):
        house.manager.park(ADA, c)
    house.manager.stop(ADA, c)
    message = finish(run)
    assert message.note == "Stopped."
    assert message.text == ""
    house.engine.load_delay_s = 0.0
    message = finish(house.manager.regenerate(ADA, c))
    receipt = house.receipt(message)
    assert message.text == house.expected_text(c)
    assert receipt.tier_before is Tier.DISK
    # The stopped turn never read its message, which a restore cannot bring back.
    # Why is told by where the stop found it: still in line (the KV went when it was parked), or already restoring.
    assert receipt.fed_tokens == len("And?") + 4
    assert receipt.miss_reason in (MissReason.EVICTED, MissReason.EARLIER_FAILURE)


def test_reading_again_where_that_is_expected_to_be_faster(make_warm: Callable[..., House]) -> None:
    house = make_warm()
    c = house.conversation()
    house.say(c, LONG)
    house.manager.park(ADA, c)
    for _ in range(10):
        house.manager.memory.saved_kvs.disk_speed.observe(2**30, 1, 1e9)
    message = house.say(c, "Now?")
    receipt = house.receipt(message)
    assert message.text == house.expected_text(c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, MissReason.REREAD_CHEAPER)
    assert receipt.choice.startswith("Read again: restoring ")
    assert receipt.restored_bytes == 0
