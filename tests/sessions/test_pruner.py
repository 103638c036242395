"""What only programs knew is forgotten when it was left long ago, and nothing that a person or a name keeps."""

from __future__ import annotations

import time

import pytest

from model_runtime.messages import ChatMessage
from model_runtime.sampling_params import SamplingParams
from sessions.completions import ChatRequest
from sessions.config import SessionConfig
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


def prune(house: House, days_later: float, monkeypatch: pytest.MonkeyPatch) -> int:
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + days_later * 24 * 3600)
        return house.manager._pruner.prune()


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


def test_what_a_program_left_is_deleted_with_its_memory(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    house = make_house(disk_kv_budget_bytes=64 * MIB)
    one_off = ask(house, "A title, please")
    chat = ask(house, "Hello")
    assert ask(house, *house.texts(chat), "Go on") == chat
    for c in (one_off, chat):
        house.saved(c)
    assert prune(house, 29, monkeypatch) == 0
    assert prune(house, 31, monkeypatch) == 2
    assert listed(house) == {}
    assert house.files() == []
    assert house.manager.memory(ADA).device_used_bytes == 0


def test_what_a_person_or_a_name_keeps_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert prune(house, 10_000, monkeypatch) == 1
    assert set(listed(house)) == {*kept}
    assert gone not in kept


def test_what_is_answering_is_left_for_the_next_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    c = ask(house, "Hello")
    with house.manager._runs.claim(c):
        assert prune(house, 31, monkeypatch) == 0
    assert set(listed(house)) == {c}


def test_what_was_gone_on_with_since_it_was_found_stays(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    c = ask(house, "Hello")
    found = house.store.forgettable(time.time() + 1)
    house.say(c, "Wait")
    monkeypatch.setattr(house.store, "forgettable", lambda unused_since: found)
    assert prune(house, 31, monkeypatch) == 0
    assert set(listed(house)) == {c}


def test_a_start_looks_at_once_and_with_0_never(make_house: MakeHouse) -> None:
    house = make_house()
    ask(house, "Hello")
    house.close()
    house = make_house(keep_unnamed_s=0)
    assert not house.manager._pruner._thread.is_alive()
    assert len(listed(house)) == 1
    house.close()
    house = make_house(keep_unnamed_s=0.001)
    until(lambda: listed(house) == {})
    with pytest.raises(ValueError, match="less than 0 days"):
        SessionConfig(device_kv_budget_bytes=1, keep_unnamed_s=-1)


def test_no_title_is_looked_for_until_it_is_gone_on_with(make_house: MakeHouse) -> None:
    house = make_house(model_titles=True)
    c = ask(house, "Hello")
    until(house.manager._idle.is_at_rest)
    assert house.store.conversation(ADA, c).has_first_title
    ask(house, *house.texts(c), "Tell me about rivers")
    until(lambda: not house.store.conversation(ADA, c).has_first_title)
