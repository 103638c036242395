"""What only programs knew goes to the bin when it was left long ago, and nothing that a person or a name keeps; nothing
of it because a clock is wrong."""

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
    """A program's request; the texts are its user's and the model's in turns."""
    roles = ("user", "assistant")
    messages = tuple(ChatMessage(roles[n % 2], text) for n, text in enumerate(texts))
    run = house.manager.completions.begin(ADA, ChatRequest(messages, GREEDY, (), key))
    finish(run)
    return run.conversation_id


def listed(house: House) -> dict[str, Origin]:
    return {s.conversation_id: s.origin for s in house.manager.list_conversations(ADA)}


@dataclass
class Hands:
    """A wall clock and a steady one that show what they are told."""

    wall: float = field(default_factory=time.time)
    steady: float = 500.0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.steady)

    def pass_days(self, house: House, days: int) -> None:
        """As a server sees them pass that runs all the while."""
        for _ in range(days):
            self.wall += DAY_S
            self.steady += DAY_S
            house.manager.pruner._uptime.look()


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def timed_house(make_house: MakeHouse, hands: Hands) -> House:
    return make_house(clock=hands.clock)


def prune(house: House) -> tuple[int, int]:
    return house.manager.pruner.prune()


def test_a_single_request_is_a_one_off_until_it_is_gone_on_with(house: House) -> None:
    c = ask(house, "Hello")
    assert listed(house) == {c: Origin.ONE_OFF}
    answer = house.texts(c)[-1]
    assert ask(house, "Hello", answer, "And then?") == c
    assert listed(house) == {c: Origin.PROGRAM}
    house.say(c, "Now by hand")
    assert listed(house) == {c: Origin.PAGE}
    assert ask(house, *house.texts(c), "And by a program") == c
    assert listed(house) == {c: Origin.PAGE}


def test_what_a_program_left_goes_to_the_bin_and_its_memory_is_freed(make_house: MakeHouse, hands: Hands) -> None:
    house = make_house(disk_kv_budget_bytes=64 * MIB, clock=hands.clock)
    one_off = ask(house, "A title, please")
    chat = ask(house, "Hello")
    assert ask(house, *house.texts(chat), "Go on") == chat
    for c in (one_off, chat):
        house.saved(c)
    assert prune(house) == (0, 0)
    hands.pass_days(house, 29)
    assert prune(house) == (0, 0)
    hands.pass_days(house, 2)
    assert prune(house) == (2, 0)
    assert listed(house) == {}
    assert house.files() == []
    assert house.manager.memory_view(ADA).device_used_bytes == 0
    hands.pass_days(house, 29)
    assert prune(house) == (0, 0)
    hands.pass_days(house, 2)
    assert prune(house) == (0, 2)
    assert house.store.bin.every() == []


def test_what_a_person_or_a_name_keeps_stays(timed_house: House, hands: Hands) -> None:
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
    gone = ask(house, "Nobody's")
    prune(house)
    hands.pass_days(house, 200)
    assert prune(house) == (1, 0)
    assert set(listed(house)) == {*kept}
    assert gone not in kept


def test_what_is_answering_is_left_for_the_next_time(timed_house: House, hands: Hands) -> None:
    house = timed_house
    c = ask(house, "Hello")
    prune(house)
    hands.pass_days(house, 31)
    with house.manager.runs.claim(c):
        assert prune(house) == (0, 0)
    assert set(listed(house)) == {c}
    assert prune(house) == (1, 0)


def test_what_was_gone_on_with_since_it_was_found_stays(timed_house: House, hands: Hands) -> None:
    house = timed_house
    c = ask(house, "Hello")
    prune(house)
    hands.pass_days(house, 31)
    seen = house.manager.pruner._uptime.look()
    (found,) = house.store.bin.unused(seen.observed_s, 30 * DAY_S)
    house.say(c, "Wait")
    assert not house.manager.pruner._put_aside(found, seen.observed_s)
    assert set(listed(house)) == {c}


def test_one_more_turn_and_the_days_count_anew(timed_house: House, hands: Hands) -> None:
    house = timed_house
    c = ask(house, "Hello")
    prune(house)
    hands.pass_days(house, 29)
    assert ask(house, *house.texts(c), "Go on") == c
    prune(house)
    hands.pass_days(house, 29)
    assert prune(house) == (0, 0)
    hands.pass_days(house, 2)
    assert prune(house) == (1, 0)


def test_the_bin_is_out_of_reach_until_it_gives_back(timed_house: House, hands: Hands) -> None:
    house = timed_house
    c = ask(house, "Hello there")
    answer = house.texts(c)[-1]
    prune(house)
    hands.pass_days(house, 31)
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
    hands.pass_days(house, 29)
    assert prune(house) == (0, 0)  # as if it had just been used
    hands.pass_days(house, 2)
    assert prune(house) == (2, 0)
    assert house.store.bin.empty() == 2
    assert house.store.bin.every() == []


def test_a_deletion_by_hand_is_a_deletion(house: House) -> None:
    c = ask(house, "Hello")
    house.manager.delete(ADA, c)
    assert house.store.bin.every() == []


def test_with_0_nothing_is_pruned_and_what_is_in_the_bin_still_goes(make_house: MakeHouse, hands: Hands) -> None:
    house = make_house(clock=hands.clock)
    ask(house, "Hello")
    prune(house)
    hands.pass_days(house, 31)
    prune(house)
    house.close()
    house = make_house(clock=hands.clock, keep_unnamed_s=0)
    ask(house, "Hello again")
    hands.pass_days(house, 31)
    assert prune(house) == (0, 1)
    assert len(listed(house)) == 1
    with pytest.raises(ValueError, match="less than 0 days"):
        SessionConfig(device_kv_budget_bytes=1, keep_unnamed_s=-1)


def test_the_thread_looks_by_itself(make_house: MakeHouse) -> None:
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
def test_a_start_under_another_clock_prunes_nothing_for_a_day(make_house: MakeHouse, hands: Hands, jump: float) -> None:
    """Nor does it make anything older than it was seen to be, and back under the right clock all goes on."""
    house = make_house(clock=hands.clock)
    c = ask(house, "Hello")
    prune(house)
    hands.pass_days(house, 29)
    house.close()
    hands.wall += jump
    house = make_house(clock=hands.clock)
    assert prune(house) == (0, 0)
    hands.wall += DAY_S / 2
    hands.steady += DAY_S / 2
    assert prune(house) == (0, 0)
    house.close()
    hands.wall -= jump
    house = make_house(clock=hands.clock)
    assert prune(house) == (0, 0)
    assert set(listed(house)) == {c}
    assert house.store.bin.every() == []
    hands.pass_days(house, 2)
    assert prune(house) == (1, 0)


@pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)
def test_a_clock_that_moves_under_a_running_server_prunes_nothing_for_a_day(
    timed_house: House, hands: Hands, jump: float
) -> None:
    house = timed_house
    ask(house, "Hello")
    prune(house)
    hands.pass_days(house, 31)
    hands.wall += jump
    assert prune(house) == (0, 0)
    hands.wall += 0.9 * DAY_S
    hands.steady += 0.9 * DAY_S
    assert prune(house) == (0, 0)
    hands.pass_days(house, 1)
    assert prune(house) == (1, 0)


def test_jumping_about_never_makes_time_pass(make_house: MakeHouse, hands: Hands) -> None:
    house = make_house(clock=hands.clock)
    c = ask(house, "Hello")
    prune(house)
    for number in range(20):
        hands.wall += 40 * DAY_S if number % 2 else -40 * DAY_S
        assert prune(house) == (0, 0)
        if number % 5 == 0:
            house.close()
            house = make_house(clock=hands.clock)
            hands.wall += 30 * DAY_S
    assert house.manager.pruner._uptime.look().observed_s < DAY_S
    assert set(listed(house)) == {c}


def test_a_first_start_after_an_update_believes_no_clock_either(make_house: MakeHouse, hands: Hands) -> None:
    """No time was ever noted: the conversations' own times are all there is to go by."""
    house = make_house(clock=hands.clock)
    c = ask(house, "Hello")
    with house.store._database.write() as db:
        db.execute("DELETE FROM observed_time")
        db.execute("DELETE FROM left_alone")
    house.close()
    hands.wall += 40 * DAY_S
    house = make_house(clock=hands.clock, keep_unnamed_s=0.001)
    assert prune(house) == (0, 0)
    assert set(listed(house)) == {c}


def test_what_was_used_last_comes_first_whatever_the_clock_says(
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
    assert house.texts(first)[-2] == "First, otherwise"  # what was looked at last


def test_no_title_is_looked_for_until_it_is_gone_on_with(make_house: MakeHouse) -> None:
    house = make_house(model_titles=True)
    c = ask(house, "Hello")
    until(house.manager.background.idle_worker.is_at_rest)
    assert house.store.conversation(ADA, c).has_first_title
    ask(house, *house.texts(c), "Tell me about rivers")
    until(lambda: not house.store.conversation(ADA, c).has_first_title)
