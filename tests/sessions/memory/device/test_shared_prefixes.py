"""Conversations of one owner that begin alike are read once; another owner's are read for themselves."""

from __future__ import annotations

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.sampling_params import SamplingParams
from sessions.turns.stateless import ChatRequest
from sessions.types import MissReason, Tier
from tests.sessions.conftest import MakeHouse
from tests.sessions.house import ADA, House, finish, until
from tests.sessions.scripted_engine import ScriptedEngine

MANUAL = "The pump is primed before it is started. " * 12


def test_a_pasted_manual_is_copied_from_the_other_conversation(house: House) -> None:
    first = house.conversation()
    house.say(first, f"{MANUAL}What is primed?")
    second = house.conversation()
    message = house.say(second, f"{MANUAL}And when?")
    receipt = house.receipt(message)
    assert receipt.shared_tokens == receipt.reused_tokens == len(MANUAL) + 1
    assert receipt.fed_tokens == len("And when?") + 2
    assert (receipt.shared_from, receipt.miss_reason, receipt.tier_before) == (first, None, Tier.NONE)
    assert receipt.shared_title == house.manager.view(ADA, first).summary.title
    assert receipt.saved_s > 0
    assert message.text == house.expected_text(second)
    third = house.receipt(house.say(second, "Why?"))
    assert (third.shared_tokens, third.shared_from) == (0, "")
    house.manager.delete(ADA, first)
    kept = house.manager.view(ADA, second).messages[1].receipt
    assert kept is not None
    assert (kept.shared_tokens, kept.shared_title) == (len(MANUAL) + 1, "")


def test_a_system_prompt_is_read_once(house: House) -> None:
    prompt = "You answer in the manner of a harbour master, briefly and with the weather in mind. " * 2
    house.say(house.conversation(system_prompt=prompt), "Good morning")
    second = house.conversation(system_prompt=prompt)
    message = house.say(second, "Any wind?")
    assert house.receipt(message).shared_tokens == len(prompt) - 1 + 3  # stripped, and its two marks, and the user's
    assert message.text == house.expected_text(second)


def test_nothing_is_taken_from_another_owner(house: House) -> None:
    house.say(house.conversation(), f"{MANUAL}What is primed?")
    other = house.conversation("eve")
    receipt = house.receipt(house.say(other, f"{MANUAL}What is primed?", owner="eve"))
    assert (receipt.reused_tokens, receipt.shared_tokens, receipt.shared_from) == (0, 0, "")


def test_a_short_beginning_is_not_worth_a_copy(house: House) -> None:
    house.say(house.conversation(), "Good morning to you all")
    receipt = house.receipt(house.say(house.conversation(), "Good morning to you both"))
    assert receipt.shared_tokens == 0


def test_an_evicted_conversation_takes_its_beginning_from_another(house: House) -> None:
    first, second = house.conversation(), ""
    house.say(first, f"{MANUAL}What is primed?")
    second = house.conversation()
    house.say(second, f"{MANUAL}And when?")
    house.manager.drop_kv(ADA, second)
    receipt = house.receipt(house.say(second, "Why?"))
    assert receipt.shared_tokens == len(MANUAL) + 1
    assert receipt.miss_reason is MissReason.EVICTED  # its own end was read again
    assert house.texts(second)[-1] == house.expected_text(second)


def test_a_draft_is_copied_too_and_counted_apart(make_house: MakeHouse) -> None:
    house = make_house(read_ahead=True)
    first = house.conversation()
    house.say(first, f"{MANUAL}What is primed?")
    until(lambda: house.manager.is_idle)
    second = house.conversation()
    house.engine.idle_counts.clear()
    house.manager.read_ahead(ADA, second, f"{MANUAL}And when is that")
    until(lambda: house.manager.is_idle)
    assert [fed for _, _, fed, _ in house.engine.idle_counts] == [len("And when is")]
    message = house.say(second, f"{MANUAL}And when is that")
    receipt = house.receipt(message)
    assert (receipt.shared_tokens, receipt.shared_from) == (len(MANUAL) + 1, first)
    assert (receipt.ahead_tokens, receipt.fed_tokens) == (len("And when is"), len(" that") + 2)
    assert receipt.tier_before is Tier.NONE
    assert message.text == house.expected_text(second)


def test_the_copy_fails_and_the_turn_reads(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine()
    house = make_house(engine=engine)
    house.say(house.conversation(), f"{MANUAL}What is primed?")

    def broken(*arguments: object) -> tuple[int, int]:
        from model_runtime.interface.errors import DeviceOutOfMemory

        raise DeviceOutOfMemory("No.")

    monkeypatch.setattr(engine, "copy_beginning", broken)
    second = house.conversation()
    message = house.say(second, f"{MANUAL}And when?")
    assert house.receipt(message).shared_tokens == 0
    assert message.text == house.expected_text(second)


def test_on_disk_the_beginning_is_counted_once(make_house: MakeHouse) -> None:
    house = make_house(disk_kv_budget_bytes=2**26)
    first, second = house.conversation(), ""
    house.say(first, f"{MANUAL * 2}What is primed?")
    house.saved(first)
    alone_bytes = house.manager.memory_view(ADA).disk_used_bytes
    second = house.conversation()
    house.say(second, f"{MANUAL * 2}And when?")
    house.saved(second)
    assert house.manager.memory_view(ADA).disk_used_bytes < alone_bytes * 1.6
    house.manager.delete(ADA, first)  # what the second refers to stays
    house.manager.park(ADA, second)
    receipt = house.receipt(house.say(second, "Why?"))
    assert receipt.tier_before is Tier.DISK
    assert house.texts(second)[-1] == house.expected_text(second)


def parked(house: House, text: str) -> str:
    """A conversation that left the device for the disk."""
    c = house.conversation()
    house.say(c, text)
    house.saved(c)
    house.manager.park(ADA, c)
    return c


def test_a_beginning_comes_from_the_files_of_another_conversation(make_house: MakeHouse) -> None:
    house = make_house(disk_kv_budget_bytes=2**26)
    first = parked(house, f"{MANUAL}What is primed?")
    house.close()
    house = make_house(disk_kv_budget_bytes=2**26)
    second = house.conversation()
    message = house.say(second, f"{MANUAL}And when?")
    receipt = house.receipt(message)
    assert (receipt.shared_tokens, receipt.shared_from) == (len(MANUAL) + 1, first)
    assert receipt.fed_tokens == len("And when?") + 2
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.NONE, None)
    assert receipt.restored_bytes > 0
    assert message.text == house.expected_text(second)
    until(lambda: any("Restored the beginning of" in event.text for event in house.manager.memory_view(ADA).events))
    house.saved(second)
    assert house.receipt(house.say(second, "Why?")).shared_tokens == 0
    assert house.receipt(house.say(first, "And that?")).tier_before is Tier.DISK  # what was lent is still its own


def test_what_another_kv_holds_is_not_fetched_from_files(make_house: MakeHouse) -> None:
    house = make_house(disk_kv_budget_bytes=2**26)
    parked(house, f"{MANUAL}What is primed?")
    on_device = house.conversation()
    house.say(on_device, f"{MANUAL}And when?")
    receipt = house.receipt(house.say(house.conversation(), f"{MANUAL}And why?"))
    assert (receipt.shared_from, receipt.restored_bytes) == (on_device, 0)


def test_no_file_of_another_owner_is_used(make_house: MakeHouse) -> None:
    house = make_house(disk_kv_budget_bytes=2**26)
    parked(house, f"{MANUAL}What is primed?")
    receipt = house.receipt(house.say(house.conversation("eve"), f"{MANUAL}What is primed?", owner="eve"))
    assert (receipt.reused_tokens, receipt.restored_bytes, receipt.shared_from) == (0, 0, "")


def test_a_lenders_damaged_file_is_refused_and_the_beginning_read(make_house: MakeHouse) -> None:
    house = make_house(disk_kv_budget_bytes=2**26)
    first = parked(house, f"{MANUAL}What is primed?")
    for path in house.files():
        path.write_bytes(path.read_bytes()[:-3])
    second = house.conversation()
    message = house.say(second, f"{MANUAL}And when?")
    assert house.receipt(message).reused_tokens == 0
    assert message.text == house.expected_text(second)
    title = house.manager.view(ADA, first).summary.title
    until(
        lambda: any(
            event.text.startswith(f"Refused the saved KV of {title}") for event in house.manager.memory_view(ADA).events
        )
    )


def test_a_fork_takes_its_parents_files(make_house: MakeHouse) -> None:
    house = make_house(disk_kv_budget_bytes=2**26)
    first = parked(house, f"{MANUAL}What is primed?")
    house.say(first, "And " + "why " * 100)
    house.saved(first)
    house.manager.park(ADA, first)
    told = house.texts(first)
    roles = ("user", "assistant")
    messages = (*(ChatMessage(roles[n], told[n]) for n in range(2)), ChatMessage("user", "Something else"))
    run = house.manager.completions.begin(ADA, ChatRequest(messages, SamplingParams(temperature=0, max_new_tokens=32)))
    receipt = house.receipt(finish(run))
    assert run.conversation_id != first
    assert (receipt.shared_from, receipt.miss_reason) == (first, None)
    assert house.texts(run.conversation_id)[-1] == house.expected_text(run.conversation_id)
