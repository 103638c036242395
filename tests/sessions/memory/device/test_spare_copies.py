"""A fork that no one goes on with keeps no copy of its parent's rows on the device."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.sampling_params import SamplingParams
from sessions.turns.planned_turn import ChatRequest
from sessions.types import MessageView, Tier
from tests.sessions.conftest import MakeHarness
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

GREEDY = SamplingParams(temperature=0, max_new_tokens=64)
MIB = 1024 * 1024
BUDGET_BYTES = 4 * MIB
LONG = "The pump is primed before it is started. " * 10


@dataclass
class Forked:
    """A chat of four exchanges, and a question about its first two on a fork."""

    harness: SessionHarness
    parent: str
    fork: str
    said: list[ChatMessage]

    def ask_fork(self, text: str) -> MessageView:
        return self.ask([*self.said, ChatMessage("user", text)])

    def ask(self, messages: list[ChatMessage]) -> MessageView:
        run = self.harness.manager.completions.begin(ADA, ChatRequest(tuple(messages), GREEDY))
        answer = finish(run)
        assert run.conversation_id == self.fork
        self.said = [*messages, ChatMessage("assistant", answer.text)]
        return answer

    def is_held(self, conversation_id: str) -> bool:
        return conversation_id in self.harness.manager.memory.holdings()


def forked(harness: SessionHarness) -> Forked:
    messages: list[ChatMessage] = []
    for number in range(4):
        messages.append(ChatMessage("user", f"Part {number}. {LONG}"))
        run = harness.manager.completions.begin(ADA, ChatRequest(tuple(messages), GREEDY))
        messages.append(ChatMessage("assistant", finish(run).text))
    asked = [*messages[:4], ChatMessage("user", "A title for this?")]
    side = harness.manager.completions.begin(ADA, ChatRequest(tuple(asked), GREEDY))
    answer = finish(side)
    assert harness.receipt(answer).shared_from == run.conversation_id != side.conversation_id
    said = [*asked, ChatMessage("assistant", answer.text)]
    return Forked(harness, run.conversation_id, side.conversation_id, said)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessions.memory.device.spare_copies.SPARE_AFTER_S", 0.05)


@pytest.mark.usefixtures("at_once")
def test_a_fork_of_one_turn_goes_and_comes_back_for_a_second(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    case = forked(harness)
    until(lambda: not case.is_held(case.fork))
    assert case.is_held(case.parent)
    answer = case.ask_fork("And a longer one?")
    receipt = harness.receipt(answer)
    assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
    assert receipt.fed_tokens == receipt.delta_tokens
    assert answer.text == harness.expected_text(case.fork)
    harness.saved(case.fork)
    assert harness.receipt(case.ask_fork("A third?")).tier_before is Tier.DEVICE
    harness.saved(case.fork)
    harness.manager.memory.held.look_again()
    assert case.is_held(case.fork)


@pytest.mark.usefixtures("at_once")
def test_it_goes_although_its_next_turn_is_read_ahead(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB, read_ahead=True)
    case = forked(harness)
    until(lambda: not case.is_held(case.fork))
    assert case.is_held(case.parent)


def test_a_fork_that_is_asked_again_soon_stays(make_harness: MakeHarness) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB)
    case = forked(harness)
    harness.saved(case.fork)
    receipt = harness.receipt(case.ask_fork("Once more?"))
    assert (receipt.tier_before, receipt.fed_tokens) == (Tier.DEVICE, receipt.delta_tokens)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("why", ["parent gone", "pinned", "not saved"])
def test_what_is_no_spare_copy_stays(make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr("sessions.memory.device.spare_copies.SPARE_AFTER_S", 0.3)
    harness = make_harness(disk_kv_budget_bytes=0 if why == "not saved" else 64 * MIB)
    case = forked(harness)
    if why == "parent gone":
        harness.manager.drop_kv(ADA, case.parent)
    if why == "pinned":
        harness.manager.pin(ADA, case.fork)
    slot = harness.manager.memory.held.slots[case.fork]
    monkeypatch.setattr("sessions.memory.device.spare_copies.SPARE_AFTER_S", 0.0)
    harness.manager.memory.held.look_again()
    if why == "parent gone":
        until(lambda: not slot.is_fork)  # looked at, and kept as a conversation like others
    else:
        until(lambda: harness.manager.is_idle)
    assert case.is_held(case.fork)


def test_where_room_is_needed_it_goes_before_what_was_used_earlier(make_harness: MakeHarness) -> None:
    harness = make_harness(budget_bytes=BUDGET_BYTES)
    case = forked(harness)
    held = harness.manager.memory.held.slots
    room_bytes = BUDGET_BYTES - sum(slot.held_bytes for slot in held.values())
    per_token = harness.engine.info.kv_bytes_per_token
    text = "x" * (room_bytes // per_token)
    harness.say(harness.conversation(max_new_tokens=16), text)
    assert case.is_held(case.parent)
    assert not case.is_held(case.fork)
