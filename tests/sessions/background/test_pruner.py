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
from sessions.turns.stateless import ChatRequest
from sessions.types import Origin
from tests.sessions.conftest import MakeHouse
from tests.sessions.house import ADA, House, finish, until

GREEDY = SamplingParams(temperature=0, max_new_tokens=32)
MIB = 1024 * 1024


def ask(house: House, *texts: str, key: str | None = None) -> str:
    """A request of a program; the texts are alternately the user's and the model's."""
    roles = ("user", "assistant")
    messages = tuple(ChatMessage(roles[n % 2], text) for n, text in enumerate(texts))
    run = house.manager.completions.begin(ADA, ChatRequest(messages, GREEDY, (), key))
    finish(run)
    return run.conversation_id


def listed(house: House) -> dict[str, Origin]:
    return {s.conversation_id: s.origin for s in house.manager.list_conversations(ADA)}


@dataclass
class FakeClock:
    """A wall clock and a steady clock that tests set."""

    wall: float = field(default_factory=time.time)
    steady: float = 500.0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def pass_days(self, house: House, days: int) -> None:
        """Lets days pass while the server runs."""
        for _ in range(days):
            self.wall += DAY_S
            self.steady += DAY_S
            house.manager.pruner.served_time.look()


@pytest.fixture
def fake_clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def timed_house(make_house: MakeHouse, fake_clock: FakeClock) -> House:
    return make_house(clock=fake_clock.clock)


def prune(house: House) -> tuple[int, int]:
    return house.manager.pruner.prune()


def test_a_single_request_is_a_one_off_until_it_is_continued(house: House) -> None:
    c = ask(house, "Hello")
    assert listed(house) == {c: Origin.ONE_OFF}
    answer = house.texts(c)[-1]
    assert ask(house, "Hello", answer, "And then?") == c
    assert listed(house) == {c: Origin.PROGRAM}
    house.say(c, "Now by hand")
    assert listed(house) == {c: Origin.PAGE}
    assert ask(house, *house.texts(c), "And by a program") == c
    assert listed(house) == {c: Origin.PAGE}


def test_old_conversations_of_programs_go_to_the_bin_and_their_memory_is_freed(
    make_house: MakeHouse, fake_clock: FakeClock
) -> None:
    house = make_house(disk_kv_budget_bytes=64 * MIB, clock=fake_clock.clock)
    one_off = ask(house, "A title, please")
    chat = ask(house, "Hello")
    assert ask(house, *house.texts(chat), "Go on") == chat
    for c in (one_off, chat):
        house.saved(c)
    assert prune(house) == (0, 0)
    fake_clock.pass_days(house, 29)
    assert prune(house) == (0, 0)
    fake_clock.pass_days(house, 2)
    assert prune(house) == (2, 0)
    assert listed(house) == {}
    assert house.files() == []
    assert house.manager.memory_view(ADA).device_used_bytes == 0
    fake_clock.pass_days(house, 29)
    assert prune(house) == (0, 0)
    fake_clock.pass_days(house, 2)
    assert prune(house) == (0, 2)
    assert house.store.bin.every() == []


def test_conversations_that_a_person_or_a_key_keeps_stay(timed_house: House, fake_clock: FakeClock) -> None:
    house = timed_house
    by_hand = house.conversation()
    house.say(by_hand, "Mine")
    kept = [by_hand, ask(house, "Named by the program", key="chat-1")]
    kept += [c := ask(house, "Named by a person")]
    house.manager.rename(ADA, c, "Keep this")
    kept += [c := ask(house, "Pinned")]
    house.manager.pin(ADA, c)
    kept += [c := ask(house, "Written in by hand")]
    house.say(c, "Indeed")
    gone = ask(house, "Unused")
    prune(house)
    fake_clock.pass_days(house, 200)
    assert prune(house) == (1, 0)
    assert set(listed(house)) == {*kept}
    assert gone not in kept


def test_a_conversation_with_an_active_run_is_left_for_the_next_time(timed_house: House, fake_clock: FakeClock) -> None:
    house = timed_house
    c = ask(house, "Hello")
    prune(house)
    fake_clock.pass_days(house, 31)
    with house.manager.runs.claim(c):
        assert prune(house) == (0, 0)
    assert set(listed(house)) == {c}
    assert prune(house) == (1, 0)


def test_a_conversation_that_was_continued_since_it_was_found_stays(timed_house: House, fake_clock: FakeClock) -> None:
    house = timed_house
    c = ask(house, "Hello")
    prune(house)
    fake_clock.pass_days(house, 31)
    seen = house.manager.pruner.served_time.look()
    (found,) = house.store.bin.unused(seen.observed_s, 30 * DAY_S)
    house.say(c, "Wait")
    assert not house.manager.pruner._move_to_bin(found, seen.observed_s)  # noqa: SLF001 - the race of one look with a turn
    assert set(listed(house)) == {c}


def test_another_turn_restarts_the_days(timed_house: House, fake_clock: FakeClock) -> None:
    house = timed_house
    c = ask(house, "Hello")
    prune(house)
    fake_clock.pass_days(house, 29)
    assert ask(house, *house.texts(c), "Go on") == c
    prune(house)
    fake_clock.pass_days(house, 29)
    assert prune(house) == (0, 0)
    fake_clock.pass_days(house, 2)
    assert prune(house) == (1, 0)


def test_a_binned_conversation_is_not_found_until_it_is_restored(timed_house: House, fake_clock: FakeClock) -> None:
    house = timed_house
    c = ask(house, "Hello there")
    answer = house.texts(c)[-1]
    prune(house)
    fake_clock.pass_days(house, 31)
    prune(house)
    reaches = (
        lambda: house.manager.view(ADA, c),
        lambda: house.manager.send(ADA, c, "Hi"),
        lambda: house.manager.rename(ADA, c, "Mine"),
        lambda: house.manager.delete(ADA, c),
        lambda: house.manager.pin(ADA, c),
        lambda: house.manager.warm(ADA, c),
    )
    for reach in reaches:
        with pytest.raises(ConversationNotFound):
            reach()
    assert house.manager.list_conversations(ADA, "Hello") == []
    assert house.manager.memory_view(ADA).rows == ()
    resent = ask(house, "Hello there", answer, "And then?")
    assert resent != c
    (binned,) = house.store.bin.every()
    assert (binned.conversation_id, binned.owner_id, binned.messages) == (c, ADA, 2)
    assert 29 * DAY_S < binned.left_s <= 30 * DAY_S

    with pytest.raises(ConversationNotFound, match="No conversation in the bin"):
        house.store.bin.restore("f" * 33)
    house.store.bin.restore(c[:8])
    assert house.texts(c) == ["Hello there", answer]
    assert listed(house).keys() == {c, resent}
    assert [s.conversation_id for s in house.manager.list_conversations("eve")] == []
    prune(house)
    fake_clock.pass_days(house, 29)
    assert prune(house) == (0, 0)  # as if it had just been used
    fake_clock.pass_days(house, 2)
    assert prune(house) == (2, 0)
    assert house.store.bin.empty() == 2
    assert house.store.bin.every() == []


def test_a_conversation_that_a_person_deletes_does_not_go_to_the_bin(house: House) -> None:
    c = ask(house, "Hello")
    house.manager.delete(ADA, c)
    assert house.store.bin.every() == []


def test_with_0_days_nothing_is_pruned_and_the_bin_is_still_emptied(
    make_house: MakeHouse, fake_clock: FakeClock
) -> None:
    house = make_house(clock=fake_clock.clock)
    ask(house, "Hello")
    prune(house)
    fake_clock.pass_days(house, 31)
    prune(house)
    house.close()
    house = make_house(clock=fake_clock.clock, keep_unnamed_s=0)
    ask(house, "Hello again")
    fake_clock.pass_days(house, 31)
    assert prune(house) == (0, 1)
    assert len(listed(house)) == 1
    with pytest.raises(ValueError, match="less than 0 days"):
        SessionConfig(device_kv_budget_bytes=1, keep_unnamed_s=-1)


def test_the_thread_prunes_by_itself(make_house: MakeHouse) -> None:
    house = make_house(keep_unnamed_s=0.001)
    ask(house, "Hello")
    until(lambda: listed(house) == {})
    assert len(house.store.bin.every()) == 1


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
    make_house: MakeHouse, fake_clock: FakeClock, jump: float
) -> None:
    """It makes nothing older either, and with the right clock everything continues."""
    house = make_house(clock=fake_clock.clock)
    c = ask(house, "Hello")
    prune(house)
    fake_clock.pass_days(house, 29)
    house.close()
    fake_clock.wall += jump
    house = make_house(clock=fake_clock.clock)
    assert prune(house) == (0, 0)
    fake_clock.wall += DAY_S / 2
    fake_clock.steady += DAY_S / 2
    assert prune(house) == (0, 0)
    house.close()
    fake_clock.wall -= jump
    house = make_house(clock=fake_clock.clock)
    assert prune(house) == (0, 0)
    assert set(listed(house)) == {c}
    assert house.store.bin.every() == []
    fake_clock.pass_days(house, 2)
    assert prune(house) == (1, 0)


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_after_a_clock_change_while_the_server_runs_nothing_is_pruned_for_a_day(
    timed_house: House, fake_clock: FakeClock, jump: float
) -> None:
    house = timed_house
    ask(house, "Hello")
    prune(house)
    fake_clock.pass_days(house, 31)
    fake_clock.wall += jump
    assert prune(house) == (0, 0)
    fake_clock.wall += 0.9 * DAY_S
    fake_clock.steady += 0.9 * DAY_S
    assert prune(house) == (0, 0)
    fake_clock.pass_days(house, 1)
    assert prune(house) == (1, 0)


def test_jumps_of_the_clock_never_count_as_time(make_house: MakeHouse, fake_clock: FakeClock) -> None:
    house = make_house(clock=fake_clock.clock)
    c = ask(house, "Hello")
    prune(house)
    for number in range(20):
        fake_clock.wall += 40 * DAY_S if number % 2 else -40 * DAY_S
        assert prune(house) == (0, 0)
        if number % 5 == 0:
            house.close()
            house = make_house(clock=fake_clock.clock)
            fake_clock.wall += 30 * DAY_S
    assert house.manager.pruner.served_time.look().observed_s < DAY_S
    assert set(listed(house)) == {c}


def test_the_first_start_after_an_update_does_not_trust_the_clock_either(
    make_house: MakeHouse, fake_clock: FakeClock
) -> None:
    """No served time was ever stored: only the times of the conversations are known."""
    house = make_house(clock=fake_clock.clock)
    c = ask(house, "Hello")
    with house.store.database.write() as db:
        db.execute("DELETE FROM observed_time")
        db.execute("DELETE FROM left_alone")
    house.close()
    fake_clock.wall += 40 * DAY_S
    house = make_house(clock=fake_clock.clock, keep_unnamed_s=0.001)
    assert prune(house) == (0, 0)
    assert set(listed(house)) == {c}


def test_the_most_recently_used_comes_first_whatever_the_clock_says(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = make_house()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    first, second = house.conversation(), None
    house.say(first, "First")
    second = house.conversation()
    now += 40 * DAY_S
    house.say(second, "Second")
    now -= 80 * DAY_S
    house.say(first, "First again")
    assert [s.conversation_id for s in house.manager.list_conversations(ADA)] == [first, second]
    message = house.manager.view(ADA, first).messages[-2]
    finish(house.manager.edit(ADA, first, message.message_id, "First, otherwise"))
    assert house.texts(first)[-2] == "First, otherwise"
    house.manager.switch_sibling(ADA, first, house.manager.view(ADA, first).messages[-2].message_id, -1)
    now -= 100 * DAY_S
    house.manager.switch_sibling(ADA, first, house.manager.view(ADA, first).messages[-2].message_id, 1)
    root = house.manager.view(ADA, first).messages[0].message_id
    house.manager.switch_sibling(ADA, first, root, 0)
    assert house.texts(first)[-2] == "First, otherwise"  # the version that was shown last


def test_the_model_is_not_asked_for_a_title_until_it_is_continued(make_house: MakeHouse) -> None:
    house = make_house(model_titles=True)
    c = ask(house, "Hello")
    until(lambda: house.manager.is_idle)
    assert house.store.conversation(ADA, c).has_first_title
    ask(house, *house.texts(c), "Tell me about rivers")
    until(lambda: not house.store.conversation(ADA, c).has_first_title)
