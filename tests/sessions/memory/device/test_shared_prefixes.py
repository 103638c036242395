"""Conversations of one owner that begin alike are read once; another owner's are read for themselves."""

from __future__ import annotations

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.sampling_params import SamplingParams
from sessions.turns.planned_turn import ChatRequest
from sessions.types import MissReason, Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.scripted_engine import ScriptedEngine
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

MANUAL = "The pump is primed before it is started. " * 12


def test_a_pasted_manual_is_copied_from_the_other_conversation(harness: SessionHarness) -> None:
    first = harness.conversation()
    harness.say(first, f"{MANUAL}What is primed?")
    second = harness.conversation()
    message = harness.say(second, f"{MANUAL}And when?")
    receipt = harness.receipt(message)
    assert receipt.shared_tokens == receipt.reused_tokens == len(MANUAL) + 1
    assert receipt.fed_tokens == len("And when?") + 2
    assert (receipt.shared_from, receipt.miss_reason, receipt.tier_before) == (first, None, Tier.NONE)
    assert receipt.shared_title == harness.manager.view(ADA, first).summary.title
    assert receipt.saved_s > 0
    assert message.text == harness.expected_text(second)
    third = harness.receipt(harness.say(second, "Why?"))
    assert (third.shared_tokens, third.shared_from) == (0, "")
    harness.manager.delete(ADA, first)
    kept = harness.manager.view(ADA, second).messages[1].receipt
    assert kept is not None
    assert (kept.shared_tokens, kept.shared_title) == (len(MANUAL) + 1, "")


def test_a_system_prompt_is_read_once(harness: SessionHarness) -> None:
    prompt = "You answer in the manner of a harbour master, briefly and with the weather in mind. " * 2
    harness.say(harness.conversation(system_prompt=prompt), "Good morning")
    second = harness.conversation(system_prompt=prompt)
    message = harness.say(second, "Any wind?")
    assert harness.receipt(message).shared_tokens == len(prompt) - 1 + 3  # stripped, and its two marks, and the user's
    assert message.text == harness.expected_text(second)


def test_nothing_is_taken_from_another_owner(harness: SessionHarness) -> None:
    harness.say(harness.conversation(), f"{MANUAL}What is primed?")
    other = harness.conversation("eve")
    receipt = harness.receipt(harness.say(other, f"{MANUAL}What is primed?", owner="eve"))
    assert (receipt.reused_tokens, receipt.shared_tokens, receipt.shared_from) == (0, 0, "")


def test_a_short_beginning_is_not_worth_a_copy(harness: SessionHarness) -> None:
    harness.say(harness.conversation(), "Good morning to you all")
    receipt = harness.receipt(harness.say(harness.conversation(), "Good morning to you both"))
    assert receipt.shared_tokens == 0


def test_an_evicted_conversation_restores_its_prefix_from_another(harness: SessionHarness) -> None:
    first, second = harness.conversation(), ""
    harness.say(first, f"{MANUAL}What is primed?")
    second = harness.conversation()
    harness.say(second, f"{MANUAL}And when?")
    harness.manager.drop_kv(ADA, second)
    receipt = harness.receipt(harness.say(second, "Why?"))
    assert receipt.shared_tokens == len(MANUAL) + 1
    assert receipt.miss_reason is MissReason.EVICTED  # its own end was read again
    assert harness.texts(second)[-1] == harness.expected_text(second)


def test_a_draft_is_copied_too_and_counted_apart(make_harness: MakeHarness) -> None:
    harness = make_harness(read_ahead=True)
    first = harness.conversation()
    harness.say(first, f"{MANUAL}What is primed?")
    until(lambda: harness.manager.is_idle)
    second = harness.conversation()
    harness.engine.idle_counts.clear()
    harness.manager.read_ahead(ADA, second, f"{MANUAL}And when is that")
    until(lambda: harness.manager.is_idle)
    assert [fed for _, _, fed, _ in harness.engine.idle_counts] == [len("And when is")]
    message = harness.say(second, f"{MANUAL}And when is that")
    receipt = harness.receipt(message)
    assert (receipt.shared_tokens, receipt.shared_from) == (len(MANUAL) + 1, first)
    assert (receipt.ahead_tokens, receipt.fed_tokens) == (len("And when is"), len(" that") + 2)
    assert receipt.tier_before is Tier.NONE
    assert message.text == harness.expected_text(second)


def test_the_copy_fails_and_the_turn_reads(make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()
    harness = make_harness(engine=engine)
    harness.say(harness.conversation(), f"{MANUAL}What is primed?")

    def broken(*arguments: object) -> tuple[int, int]:
        from model_runtime.interface.errors import DeviceOutOfMemory

        raise DeviceOutOfMemory("No.")

    monkeypatch.setattr(engine, "copy_beginning", broken)
    second = harness.conversation()
    message = harness.say(second, f"{MANUAL}And when?")
    assert harness.receipt(message).shared_tokens == 0
    assert message.text == harness.expected_text(second)


def test_on_disk_the_beginning_is_counted_once(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2**26)
    first, second = harness.conversation(), ""
    harness.say(first, f"{MANUAL * 2}What is primed?")
    harness.saved(first)
    alone_bytes = harness.manager.memory_view(ADA).disk_used_bytes
    second = harness.conversation()
    harness.say(second, f"{MANUAL * 2}And when?")
    harness.saved(second)
    assert harness.manager.memory_view(ADA).disk_used_bytes < alone_bytes * 1.6
    harness.manager.delete(ADA, first)  # what the second refers to stays
    harness.manager.park(ADA, second)
    receipt = harness.receipt(harness.say(second, "Why?"))
    assert receipt.tier_before is Tier.DISK
    assert harness.texts(second)[-1] == harness.expected_text(second)


def test_a_fork_in_the_middle_shares_its_parents_files(make_harness: MakeHarness) -> None:
    """One copy of what both have, whichever turns the parent's files were cut at; each restores it, also alone."""
    harness = make_harness(disk_kv_budget_bytes=2**26)
    first = harness.conversation()
    for number in range(5):
        harness.say(first, f"Question {number}: " + "why " * (10 if number == 0 else 80))
        harness.saved(first)
    told, roles = harness.texts(first), ("user", "assistant")
    alone_bytes = harness.manager.memory_view(ADA).disk_used_bytes
    messages = (*(ChatMessage(roles[n % 2], told[n]) for n in range(8)), ChatMessage("user", "Something else"))
    run = harness.manager.completions.begin(ADA, ChatRequest(messages, SamplingParams(temperature=0)))
    assert harness.receipt(finish(run)).fed_tokens <= len("Something else") + 4
    assert run.plan.is_fork
    harness.saved(run.conversation_id)
    fresh = len(harness.ledger(run.conversation_id)) - run.restored.shared.end_tokens if run.restored.shared else 0
    assert 0 < harness.manager.memory_view(ADA).disk_used_bytes - alone_bytes < fresh * 1024 * 1.1 + 600
    harness.manager.delete(ADA, first)
    harness.manager.park(ADA, run.conversation_id)
    receipt = harness.receipt(harness.say(run.conversation_id, "Why?"))
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    assert harness.texts(run.conversation_id)[-1] == harness.expected_text(run.conversation_id)


def parked(harness: SessionHarness, text: str) -> str:
    """A conversation that left the device for the disk."""
    c = harness.conversation()
    harness.say(c, text)
    harness.saved(c)
    harness.manager.park(ADA, c)
    return c


def test_a_shared_prefix_comes_from_the_files_of_another_conversation(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2**26)
    first = parked(harness, f"{MANUAL}What is primed?")
    harness.close()
    harness = make_harness(disk_kv_budget_bytes=2**26)
    second = harness.conversation()
    message = harness.say(second, f"{MANUAL}And when?")
    receipt = harness.receipt(message)
    assert (receipt.shared_tokens, receipt.shared_from) == (len(MANUAL) + 1, first)
    assert receipt.fed_tokens == len("And when?") + 2
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, None)
    assert receipt.restored_bytes > 0
    assert message.text == harness.expected_text(second)
    until(lambda: any("Brought the beginning of" in event.text for event in harness.manager.memory_view(ADA).events))
    harness.saved(second)
    assert harness.receipt(harness.say(second, "Why?")).shared_tokens == 0
    assert harness.receipt(harness.say(first, "And that?")).tier_before is Tier.DISK  # what was lent is still its own


def test_what_another_kv_holds_is_not_fetched_from_files(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2**26)
    parked(harness, f"{MANUAL}What is primed?")
    on_device = harness.conversation()
    harness.say(on_device, f"{MANUAL}And when?")
    receipt = harness.receipt(harness.say(harness.conversation(), f"{MANUAL}And why?"))
    assert (receipt.shared_from, receipt.restored_bytes) == (on_device, 0)


def test_no_file_of_another_owner_is_used(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2**26)
    parked(harness, f"{MANUAL}What is primed?")
    receipt = harness.receipt(harness.say(harness.conversation("eve"), f"{MANUAL}What is primed?", owner="eve"))
    assert (receipt.reused_tokens, receipt.restored_bytes, receipt.shared_from) == (0, 0, "")


def test_a_lenders_damaged_file_is_refused_and_the_beginning_read(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2**26)
    first = parked(harness, f"{MANUAL}What is primed?")
    for path in harness.files():
        path.write_bytes(path.read_bytes()[:-3])
    second = harness.conversation()
    message = harness.say(second, f"{MANUAL}And when?")
    assert harness.receipt(message).reused_tokens == 0
    assert message.text == harness.expected_text(second)
    title = harness.manager.view(ADA, first).summary.title
    until(
        lambda: any(
            event.text.startswith(f"Refused what was saved of {title}")
            for event in harness.manager.memory_view(ADA).events
        )
    )


def test_a_fork_uses_its_parents_files(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=2**26)
    first = parked(harness, f"{MANUAL}What is primed?")
    harness.say(first, "And " + "why " * 100)
    harness.saved(first)
    harness.manager.park(ADA, first)
    told = harness.texts(first)
    roles = ("user", "assistant")
    messages = (*(ChatMessage(roles[n], told[n]) for n in range(2)), ChatMessage("user", "Something else"))
    run = harness.manager.completions.begin(
        ADA, ChatRequest(messages, SamplingParams(temperature=0, max_new_tokens=32))
    )
    receipt = harness.receipt(finish(run))
    assert run.conversation_id != first
    assert (receipt.shared_from, receipt.miss_reason) == (first, None)
    assert harness.texts(run.conversation_id)[-1] == harness.expected_text(run.conversation_id)
