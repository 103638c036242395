"""KVs that outlive eviction and restarts: written through to disk, shared by branches, restored when that pays."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sessions.errors import ConversationBusy, StoreError
from sessions.types import MissReason, Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MIB = 1024 * 1024
LONG = "A long message that is worth saving, because reading it again takes a while. " * 4


@pytest.fixture
def make_warm(make_harness: MakeHarness) -> Callable[..., SessionHarness]:
    """Harnesses that save to disk."""
    return lambda **settings: make_harness(**{"disk_kv_budget_bytes": 64 * MIB, **settings})


def fed_only_the_delta(harness: SessionHarness, c: str, text: str = "And then?") -> None:
    message = harness.say(c, text)
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    assert receipt.fed_tokens == receipt.delta_tokens < receipt.reused_tokens
    assert receipt.restored_bytes >= receipt.reused_tokens * 1024
    assert receipt.restore_s > 0
    assert receipt.ttft_s is not None
    assert receipt.ttft_s >= receipt.restore_s
    assert receipt.choice.startswith("Restored: restoring ")


def test_the_first_turn_after_a_restart_is_fed_only_its_delta(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.say(c, "Go on.")
    harness.saved(c)
    harness.close()
    harness = make_warm()
    assert harness.manager.list_conversations(ADA)[0].tier is Tier.DISK
    fed_only_the_delta(harness, c)
    harness.close()  # flushes
    harness = make_warm()
    fed_only_the_delta(harness, c, "Once more.")


def test_close_saves_what_is_still_to_be_saved(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm(engine=ScriptedEngine(token_delay_s=0.05))
    harness.engine.save_delay_s = 0.1
    c = harness.conversation()
    run = harness.manager.send(ADA, c, LONG)
    until(lambda: run.snapshot().sampled_tokens > 1)
    harness.close()
    harness = make_warm()
    message = finish(harness.manager.continue_answer(ADA, c))
    assert message.text == harness.expected_text(c)
    assert harness.receipt(message).tier_before is Tier.DISK
    assert harness.receipt(message).fed_tokens == harness.receipt(message).delta_tokens


def test_an_evicted_conversation_comes_back_from_disk(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm(budget_bytes=640 * 1024)
    a = harness.conversation(max_new_tokens=100)
    harness.say(a, LONG)
    b = harness.conversation(max_new_tokens=100)
    harness.say(b, LONG + "b")  # there is room for one
    harness.saved(a)
    rows = {row.conversation_id: row for row in harness.manager.memory_view(ADA).rows}
    assert rows[a].tier is Tier.DISK
    assert rows[a].kv_tokens == 0
    assert rows[a].disk_tokens == len(harness.ledger(a)) - 1
    assert rows[a].next_ttft_s < rows[a].cold_ttft_s
    fed_only_the_delta(harness, a)
    fed_only_the_delta(harness, b)
    events = [event.text for event in harness.manager.memory_view(ADA).events]
    assert any(text.startswith("Brought A long message") for text in events)
    assert harness.engine.peak_bytes <= 640 * 1024


def test_what_was_evicted_while_it_is_being_written_comes_back_from_memory(
    make_warm: Callable[..., SessionHarness],
) -> None:
    harness = make_warm(budget_bytes=640 * 1024)
    harness.engine.save_delay_s = 1.0
    a = harness.conversation(max_new_tokens=100)
    harness.say(a, LONG)
    b = harness.conversation(max_new_tokens=100)
    harness.say(b, LONG + "b")  # there is room for one
    row = next(r for r in harness.manager.memory_view(ADA).rows if r.conversation_id == a)
    assert row.kv_tokens == 0
    assert row.disk_tokens < len(harness.ledger(a)) - 1, "the writer was too quick for this test"
    fed_only_the_delta(harness, a)


def test_branches_share_what_they_have_in_common(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.say(c, LONG + "Second")
    harness.saved(c)
    alone_bytes = harness.manager.memory_view(ADA).disk_used_bytes
    second = harness.manager.view(ADA, c).messages[2]
    finish(harness.manager.edit(ADA, c, second.message_id, LONG + "Another"))
    harness.saved(c)
    assert harness.manager.memory_view(ADA).disk_used_bytes < alone_bytes * 1.6
    harness.close()
    harness = make_warm()
    fed_only_the_delta(harness, c)
    harness.manager.switch_sibling(ADA, c, harness.manager.view(ADA, c).messages[2].message_id, -1)
    fed_only_the_delta(harness, c, "On the other branch.")  # the KV held the sibling


def test_a_regenerated_answer_shares_a_long_prompt(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.saved(c)
    assert len(harness.files()) == 3  # the prompt in two pieces (`chains.BEGINNING_TOKENS`), and its answer
    harness.engine.answer = lambda ledger: (*b"Something else", 259)
    finish(harness.manager.regenerate(ADA, c))
    harness.saved(c)
    assert len(harness.files()) == 4
    harness.manager.park(ADA, c)
    message = finish(harness.manager.regenerate(ADA, c))
    assert harness.receipt(message).tier_before is Tier.DISK
    assert harness.receipt(message).fed_tokens == 1


def test_an_edit_after_a_restart_uses_the_beginning(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.say(c, "Second message")
    harness.saved(c)
    harness.close()
    harness = make_warm()
    second = harness.manager.view(ADA, c).messages[2]
    message = finish(harness.manager.edit(ADA, c, second.message_id, "Second thoughts"))
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    assert receipt.fed_tokens == receipt.delta_tokens < 30


def test_two_conversations_that_begin_alike_share_their_files(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    a = harness.conversation()
    harness.say(a, LONG)
    harness.saved(a)
    files = harness.files()
    b = harness.conversation()
    harness.say(b, LONG)
    harness.saved(b)
    assert harness.files() == files
    harness.manager.delete(ADA, a)
    assert harness.files() == files
    harness.manager.park(ADA, b)
    fed_only_the_delta(harness, b)
    harness.manager.delete(ADA, b)
    assert harness.files() == []


def test_dropping_by_hand_deletes_the_saved_copy_too(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.saved(c)
    assert harness.files()
    harness.manager.drop_kv(ADA, c)
    assert harness.files() == []
    receipt = harness.say(c, "And now?").receipt
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, MissReason.EVICTED)


def test_owners_share_nothing(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    conversations = {owner: harness.conversation(owner) for owner in (ADA, "eve")}
    for owner, c in conversations.items():
        harness.say(c, LONG, owner)
        harness.saved(c, owner)
    keys = {owner: {s.key for s in harness.store.segments.of_conversation(c)} for owner, c in conversations.items()}
    assert not keys[ADA] & keys["eve"]
    assert len(harness.files()) == len(keys[ADA]) + len(keys["eve"])
    assert conversations["eve"] not in harness.manager.memory.saved(ADA)


def test_deleting_a_conversation_deletes_its_files(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.saved(c)
    assert harness.files()
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in harness.files())
    assert harness.store.kv_dir.stat().st_mode & 0o777 == 0o700
    harness.manager.delete(ADA, c)
    assert harness.files() == []
    assert harness.manager.memory_view(ADA).disk_used_bytes == 0


def test_deleted_while_it_is_being_saved(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    harness.engine.save_delay_s = 0.2
    c = harness.conversation()
    harness.say(c, LONG)
    harness.manager.delete(ADA, c)
    harness.close()
    assert harness.files() == []


def test_park_saves_then_frees(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.manager.park(ADA, c)
    memory = harness.manager.memory_view(ADA)
    assert (memory.rows[0].tier, memory.device_used_bytes, harness.engine.allocated_bytes) == (Tier.DISK, 0, 0)
    assert memory.events[0].text.startswith("Moved ")
    harness.manager.park(ADA, c)  # nothing left to park
    fed_only_the_delta(harness, c)


def test_what_cannot_be_saved_is_not_parked(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    harness.engine.fail_save = lambda identity: "No space left on device."
    c = harness.conversation()
    harness.say(c, LONG)
    with pytest.raises(StoreError, match="stays on the device"):
        harness.manager.park(ADA, c)
    assert harness.manager.memory_view(ADA).rows[0].tier is Tier.DEVICE


def test_without_a_disk_budget_nothing_is_saved(make_harness: MakeHarness) -> None:
    harness = make_harness()
    c = harness.conversation()
    harness.say(c, LONG)
    with pytest.raises(StoreError, match="disk budget is 0"):
        harness.manager.park(ADA, c)
    assert not harness.manager.prepare(ADA, c)
    harness.close()
    assert harness.files() == []


def test_opening_a_conversation_restores_it(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.manager.park(ADA, c)
    assert harness.manager.prepare(ADA, c)
    until(lambda: harness.manager.memory_view(ADA).rows[0].tier is Tier.DEVICE)
    until(lambda: harness.manager.memory_view(ADA).device_reserved_bytes == 0)
    assert not harness.manager.prepare(ADA, c)  # it is there
    receipt = harness.receipt(harness.say(c, "Well?"))
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DEVICE, receipt.delta_tokens)


def test_opening_a_conversation_evicts_no_other(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm(budget_bytes=640 * 1024)
    a, b = harness.conversation(max_new_tokens=100), ""
    harness.say(a, LONG)
    harness.manager.park(ADA, a)
    b = harness.conversation(max_new_tokens=100)
    harness.say(b, LONG + "b")
    assert not harness.manager.prepare(ADA, a)
    assert {r.conversation_id: r.tier for r in harness.manager.memory_view(ADA).rows} == {a: Tier.DISK, b: Tier.DEVICE}


def test_a_message_sent_while_its_conversation_is_prepared(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.manager.park(ADA, c)
    harness.engine.load_delay_s = 0.1
    assert harness.manager.prepare(ADA, c)
    message = harness.say(c, "Quick")
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert receipt.fed_tokens == receipt.delta_tokens


def test_deleted_while_it_is_prepared(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.manager.park(ADA, c)
    harness.engine.load_delay_s = 0.2
    assert harness.manager.prepare(ADA, c)
    harness.manager.delete(ADA, c)
    assert harness.files() == []
    until(lambda: harness.engine.allocated_bytes == 0)


def test_a_restore_can_be_stopped(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    for number in range(6):
        harness.say(c, f"{LONG} {number}")
    harness.manager.park(ADA, c)
    harness.engine.load_delay_s = 0.15
    run = harness.manager.send(ADA, c, "And?")
    with pytest.raises(ConversationBusy):
        harness.manager.park(ADA, c)
    harness.manager.stop(ADA, c)
    message = finish(run)
    assert message.note == "Stopped."
    assert message.text == ""
    harness.engine.load_delay_s = 0.0
    message = finish(harness.manager.regenerate(ADA, c))
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert receipt.tier_before is Tier.DISK
    # The stopped turn never read its message, which a restore cannot bring back.
    # Why is told by where the stop found it: still in line (the KV went when it was parked), or already restoring.
    assert receipt.fed_tokens == len("And?") + 4
    assert receipt.miss_reason in (MissReason.EVICTED, MissReason.EARLIER_FAILURE)


def test_reading_again_where_that_is_expected_to_be_faster(make_warm: Callable[..., SessionHarness]) -> None:
    harness = make_warm()
    c = harness.conversation()
    harness.say(c, LONG)
    harness.manager.park(ADA, c)
    for _ in range(10):
        harness.manager.memory.saved_kvs.disk_speed.observe(2**30, 1, 1e9)
    message = harness.say(c, "Now?")
    receipt = harness.receipt(message)
    assert message.text == harness.expected_text(c)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, MissReason.REREAD_CHEAPER)
    assert receipt.choice.startswith("Read again: restoring ")
    assert receipt.restored_bytes == 0
