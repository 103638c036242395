"""Old conversations that only a program knew go to the bin. Those that a person or a key keeps stay, and a wrong clock
moves nothing there."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from model_runtime.interface.chat import ChatMessage
from model_runtime.interface.sampling_params import SamplingParams
from sessions.config import SessionConfig
from sessions.errors import ConversationNotFound
from sessions.store.tables.served_time import DAY_S, Clock
from sessions.turns.planned_turn import ChatRequest
from sessions.types import Origin
from tests.sessions.conftest import MakeHarness
from tests.sessions.session_harness import ADA, SessionHarness, finish, until

GREEDY = SamplingParams(temperature=0, max_new_tokens=32)
MIB = 1024 * 1024


def ask(harness: SessionHarness, *texts: str, key: str | None = None) -> str:
    """A request of a program; the texts are alternately the user's and the model's."""
    roles = ("user", "assistant")
    messages = tuple(ChatMessage(roles[n % 2], text) for n, text in enumerate(texts))
    run = harness.manager.completions.begin(ADA, ChatRequest(messages, GREEDY, (), key))
    finish(run)
    return run.conversation_id


def listed(harness: SessionHarness) -> dict[str, Origin]:
    return {s.conversation_id: s.origin for s in harness.manager.list_conversations(ADA)}


@dataclass
class FakeClock:
    """A wall clock and a steady clock that tests set."""

    wall: float = field(default_factory=time.time)
    steady: float = 500.0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def pass_days(self, harness: SessionHarness, days: int) -> None:
        """Lets days pass while the server runs."""
        for _ in range(days):
            self.wall += DAY_S
            self.steady += DAY_S
            harness.manager.pruner.served_time.look()


@pytest.fixture
def fake_clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed_harness(make_harness: MakeHarness, fake_clock: FakeClock) -> SessionHarness:
    return make_harness(clock=fake_clock.clock)


def prune(harness: SessionHarness) -> tuple[int, int]:
    return harness.manager.pruner.prune()


def test_a_single_request_is_a_one_off_until_it_is_continued(harness: SessionHarness) -> None:
    c = ask(harness, "Hello")
    assert listed(harness) == {c: Origin.ONE_OFF}
    answer = harness.texts(c)[-1]
    assert ask(harness, "Hello", answer, "And then?") == c
    assert listed(harness) == {c: Origin.PROGRAM}
    harness.say(c, "Now by hand")
    assert listed(harness) == {c: Origin.PAGE}
    assert ask(harness, *harness.texts(c), "And by a program") == c
    assert listed(harness) == {c: Origin.PAGE}


def test_old_conversations_of_programs_go_to_the_bin_and_their_memory_is_freed(
    make_harness: MakeHarness, fake_clock: FakeClock
) -> None:
    harness = make_harness(disk_kv_budget_bytes=64 * MIB, clock=fake_clock.clock)
    one_off = ask(harness, "A title, please")
    chat = ask(harness, "Hello")
    assert ask(harness, *harness.texts(chat), "Go on") == chat
    for c in (one_off, chat):
        harness.saved(c)
    assert prune(harness) == (0, 0)
    fake_clock.pass_days(harness, 29)
    assert prune(harness) == (0, 0)
    fake_clock.pass_days(harness, 2)
    assert prune(harness) == (2, 0)
    assert listed(harness) == {}
    assert harness.files() == []
    assert harness.manager.memory_view(ADA).device_used_bytes == 0
    fake_clock.pass_days(harness, 29)
    assert prune(harness) == (0, 0)
    fake_clock.pass_days(harness, 2)
    assert prune(harness) == (0, 2)
    assert harness.store.bin.every() == []


def test_conversations_that_a_person_or_a_key_keeps_stay(timed_harness: SessionHarness, fake_clock: FakeClock) -> None:
    harness = timed_harness
    by_hand = harness.conversation()
    harness.say(by_hand, "Mine")
    kept = [by_hand, ask(harness, "Named by the program", key="chat-1")]
    kept += [c := ask(harness, "Named by a person")]
    harness.manager.rename(ADA, c, "Keep this")
    kept += [c := ask(harness, "Pinned")]
    harness.manager.pin(ADA, c)
    kept += [c := ask(harness, "Written in by hand")]
    harness.say(c, "Indeed")
    gone = ask(harness, "Unused")
    prune(harness)
    fake_clock.pass_days(harness, 200)
    assert prune(harness) == (1, 0)
    assert set(listed(harness)) == {*kept}
    assert gone not in kept


def test_a_conversation_with_an_active_run_is_left_for_the_next_time(
    timed_harness: SessionHarness, fake_clock: FakeClock
) -> None:
    harness = timed_harness
    c = ask(harness, "Hello")
    prune(harness)
    fake_clock.pass_days(harness, 31)
    with harness.manager.runs.claim(c):
        assert prune(harness) == (0, 0)
    assert set(listed(harness)) == {c}
    assert prune(harness) == (1, 0)


def test_a_conversation_that_was_continued_since_it_was_found_stays(
    timed_harness: SessionHarness, fake_clock: FakeClock
) -> None:
    harness = timed_harness
    c = ask(harness, "Hello")
    prune(harness)
    fake_clock.pass_days(harness, 31)
    seen = harness.manager.pruner.served_time.look()
    (found,) = harness.store.bin.unused(seen.observed_s, 30 * DAY_S)
    harness.say(c, "Wait")
    assert not harness.manager.pruner._move_to_bin(found, seen.observed_s)  # noqa: SLF001 - the race of one look with a turn
    assert set(listed(harness)) == {c}


def test_another_turn_restarts_the_days(timed_harness: SessionHarness, fake_clock: FakeClock) -> None:
    harness = timed_harness
    c = ask(harness, "Hello")
    prune(harness)
    fake_clock.pass_days(harness, 29)
    assert ask(harness, *harness.texts(c), "Go on") == c
    prune(harness)
    fake_clock.pass_days(harness, 29)
    assert prune(harness) == (0, 0)
    fake_clock.pass_days(harness, 2)
    assert prune(harness) == (1, 0)


def test_a_binned_conversation_is_not_found_until_it_is_restored(
    timed_harness: SessionHarness, fake_clock: FakeClock
) -> None:
    harness = timed_harness
    c = ask(harness, "Hello there")
    answer = harness.texts(c)[-1]
    prune(harness)
    fake_clock.pass_days(harness, 31)
    prune(harness)
    reaches = (
        lambda: harness.manager.view(ADA, c),
        lambda: harness.manager.send(ADA, c, "Hi"),
        lambda: harness.manager.rename(ADA, c, "Mine"),
        lambda: harness.manager.delete(ADA, c),
        lambda: harness.manager.pin(ADA, c),
        lambda: harness.manager.warm(ADA, c),
    )
    for reach in reaches:
        with pytest.raises(ConversationNotFound):
            reach()
    assert harness.manager.list_conversations(ADA, "Hello") == []
    assert harness.manager.memory_view(ADA).rows == ()
    resent = ask(harness, "Hello there", answer, "And then?")
    assert resent != c
    (binned,) = harness.store.bin.every()
    assert (binned.conversation_id, binned.owner_id, binned.messages) == (c, ADA, 2)
    assert 29 * DAY_S < binned.left_s <= 30 * DAY_S

    with pytest.raises(ConversationNotFound, match="No conversation in the bin"):
        harness.store.bin.restore("f" * 33)
    harness.store.bin.restore(c[:8])
    assert harness.texts(c) == ["Hello there", answer]
    assert listed(harness).keys() == {c, resent}
    assert [s.conversation_id for s in harness.manager.list_conversations("eve")] == []
    prune(harness)
    fake_clock.pass_days(harness, 29)
    assert prune(harness) == (0, 0)  # as if it had just been used
    fake_clock.pass_days(harness, 2)
    assert prune(harness) == (2, 0)
    assert harness.store.bin.empty() == 2
    assert harness.store.bin.every() == []


def test_a_conversation_that_a_person_deletes_does_not_go_to_the_bin(harness: SessionHarness) -> None:
    c = ask(harness, "Hello")
    harness.manager.delete(ADA, c)
    assert harness.store.bin.every() == []


def test_with_0_days_nothing_is_pruned_and_the_bin_is_still_emptied(
    make_harness: MakeHarness, fake_clock: FakeClock
) -> None:
    harness = make_harness(clock=fake_clock.clock)
    ask(harness, "Hello")
    prune(harness)
    fake_clock.pass_days(harness, 31)
    prune(harness)
    harness.close()
    harness = make_harness(clock=fake_clock.clock, keep_unnamed_s=0)
    ask(harness, "Hello again")
    fake_clock.pass_days(harness, 31)
    assert prune(harness) == (0, 1)
    assert len(listed(harness)) == 1
    with pytest.raises(ValueError, match="less than 0 days"):
        SessionConfig(device_kv_budget_bytes=1, keep_unnamed_s=-1)


def test_the_thread_prunes_by_itself(make_harness: MakeHarness) -> None:
    harness = make_harness(keep_unnamed_s=0.001)
    ask(harness, "Hello")
    until(lambda: listed(harness) == {})
    assert len(harness.store.bin.every()) == 1


JUMPS = {
    "40 days ahead": 40 * DAY_S,
    "two days ahead": 2 * DAY_S,
    "40 years ahead": 40 * 365 * DAY_S,
    "one hour back": -3600.0,
    "40 days back": -40 * DAY_S,
    "to the epoch": -float(2**30),
}


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_after_a_start_with_another_clock_nothing_is_pruned_for_a_day(
    make_harness: MakeHarness, fake_clock: FakeClock, jump: float
) -> None:
    """It makes nothing older either, and with the right clock everything continues."""
    harness = make_harness(clock=fake_clock.clock)
    c = ask(harness, "Hello")
    prune(harness)
    fake_clock.pass_days(harness, 29)
    harness.close()
    fake_clock.wall += jump
    harness = make_harness(clock=fake_clock.clock)
    assert prune(harness) == (0, 0)
    fake_clock.wall += DAY_S / 2
    fake_clock.steady += DAY_S / 2
    assert prune(harness) == (0, 0)
    harness.close()
    fake_clock.wall -= jump
    harness = make_harness(clock=fake_clock.clock)
    assert prune(harness) == (0, 0)
    assert set(listed(harness)) == {c}
    assert harness.store.bin.every() == []
    fake_clock.pass_days(harness, 2)
    assert prune(harness) == (1, 0)


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_after_a_clock_change_while_the_server_runs_nothing_is_pruned_for_a_day(
    timed_harness: SessionHarness, fake_clock: FakeClock, jump: float
) -> None:
    harness = timed_harness
    ask(harness, "Hello")
    prune(harness)
    fake_clock.pass_days(harness, 31)
    fake_clock.wall += jump
    assert prune(harness) == (0, 0)
    fake_clock.wall += 0.9 * DAY_S
    fake_clock.steady += 0.9 * DAY_S
    assert prune(harness) == (0, 0)
    fake_clock.pass_days(harness, 1)
    assert prune(harness) == (1, 0)


def test_jumps_of_the_clock_never_count_as_time(make_harness: MakeHarness, fake_clock: FakeClock) -> None:
    harness = make_harness(clock=fake_clock.clock)
    c = ask(harness, "Hello")
    prune(harness)
    for number in range(20):
        fake_clock.wall += 40 * DAY_S if number % 2 else -40 * DAY_S
        assert prune(harness) == (0, 0)
        if number % 5 == 0:
            harness.close()
            harness = make_harness(clock=fake_clock.clock)
            fake_clock.wall += 30 * DAY_S
    assert harness.manager.pruner.served_time.look().observed_s < DAY_S
    assert set(listed(harness)) == {c}


def test_the_first_start_after_an_update_does_not_trust_the_clock_either(
    make_harness: MakeHarness, fake_clock: FakeClock
) -> None:
    """No served time was ever stored: only the times of the conversations are known."""
    harness = make_harness(clock=fake_clock.clock)
    c = ask(harness, "Hello")
    with harness.store.database.write() as db:
        db.execute("DELETE FROM observed_time")
        db.execute("DELETE FROM left_alone")
    harness.close()
    fake_clock.wall += 40 * DAY_S
    harness = make_harness(clock=fake_clock.clock, keep_unnamed_s=0.001)
    assert prune(harness) == (0, 0)
    assert set(listed(harness)) == {c}


def test_the_most_recently_used_comes_first_whatever_the_clock_says(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = make_harness()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    first, second = harness.conversation(), None
    harness.say(first, "First")
    second = harness.conversation()
    now += 40 * DAY_S
    harness.say(second, "Second")
    now -= 80 * DAY_S
    harness.say(first, "First again")
    assert [s.conversation_id for s in harness.manager.list_conversations(ADA)] == [first, second]
    message = harness.manager.view(ADA, first).messages[-2]
    finish(harness.manager.edit(ADA, first, message.message_id, "First, otherwise"))
    assert harness.texts(first)[-2] == "First, otherwise"
    harness.manager.switch_sibling(ADA, first, harness.manager.view(ADA, first).messages[-2].message_id, -1)
    now -= 100 * DAY_S
    harness.manager.switch_sibling(ADA, first, harness.manager.view(ADA, first).messages[-2].message_id, 1)
    root = harness.manager.view(ADA, first).messages[0].message_id
    harness.manager.switch_sibling(ADA, first, root, 0)
    assert harness.texts(first)[-2] == "First, otherwise"  # the version that was shown last


def test_the_model_is_not_asked_for_a_title_until_it_is_continued(make_harness: MakeHarness) -> None:
    harness = make_harness(model_titles=True)
    c = ask(harness, "Hello")
    until(lambda: harness.manager.is_idle)
    assert harness.store.conversation(ADA, c).has_first_title
    ask(harness, *harness.texts(c), "Tell me about rivers")
    until(lambda: not harness.store.conversation(ADA, c).has_first_title)
