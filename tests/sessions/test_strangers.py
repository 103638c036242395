"""Another owner's conversation does not exist, whatever is asked of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from model_runtime.sampling_params import SamplingParams
from sessions.errors import ConversationNotFound
from sessions.manager import SessionManager
from sessions.types import ConversationSettings
from tests.sessions.house import ADA, House

EVE = "eve"
Call = Callable[[SessionManager, str, str, int], object]

CALLS: dict[str, Call] = {
    "view": lambda m, owner, c, message: m.view(owner, c),
    "rename": lambda m, owner, c, message: m.rename(owner, c, "Mine now"),
    "delete": lambda m, owner, c, message: m.delete(owner, c),
    "update_settings": lambda m, owner, c, message: m.update_settings(owner, c, ConversationSettings(SamplingParams())),
    "send": lambda m, owner, c, message: m.send(owner, c, "Hello"),
    "regenerate": lambda m, owner, c, message: m.regenerate(owner, c),
    "edit": lambda m, owner, c, message: m.edit(owner, c, message, "Changed"),
    "continue_answer": lambda m, owner, c, message: m.continue_answer(owner, c),
    "switch_sibling": lambda m, owner, c, message: m.switch_sibling(owner, c, message, 1),
    "stop": lambda m, owner, c, message: m.stop(owner, c),
    "active_run": lambda m, owner, c, message: m.active_run(owner, c),
    "find_run": lambda m, owner, c, message: m.find_run(owner, c, message),
    "drop_kv": lambda m, owner, c, message: m.drop_kv(owner, c),
    "park": lambda m, owner, c, message: m.park(owner, c),
    "pin": lambda m, owner, c, message: m.pin(owner, c),
    "unpin": lambda m, owner, c, message: m.unpin(owner, c),
    "verify": lambda m, owner, c, message: m.verify(owner, c),
    "warm": lambda m, owner, c, message: m.warm(owner, c),
    "prepare": lambda m, owner, c, message: m.prepare(owner, c),
    "read_ahead": lambda m, owner, c, message: m.read_ahead(owner, c, "Hello"),
    "count_tokens": lambda m, owner, c, message: m.count_tokens(owner, c, "Hello"),
}


def test_every_method_that_takes_a_conversation_is_in_the_list() -> None:
    taking = {
        name
        for name, method in inspect.getmembers(SessionManager, inspect.isfunction)
        if not name.startswith("_") and "conversation_id" in inspect.signature(method).parameters
    }
    assert taking == set(CALLS)
    for name in taking:
        assert list(inspect.signature(getattr(SessionManager, name)).parameters)[1:3] == ["owner_id", "conversation_id"]


@pytest.mark.parametrize("name", CALLS)
def test_a_stranger_finds_nothing(house: House, name: str) -> None:
    c = house.conversation()
    house.say(c, "My secret")
    house.manager.ensure_user(EVE)
    before = house.manager.view(ADA, c)
    for owner, conversation in ((EVE, c), ("nobody", c), ("", c), (ADA, "0" * 32), (ADA, "../../etc"), (ADA, "\ud800")):
        with pytest.raises(ConversationNotFound):
            CALLS[name](house.manager, owner, conversation, before.messages[0].message_id)
    assert house.manager.view(ADA, c) == before


def test_a_busy_conversation_is_not_found_either(make_house) -> None:  # type: ignore[no-untyped-def]
    """ "Busy" would tell a stranger that the id exists."""
    from tests.sessions.scripted_engine import ScriptedEngine

    house = make_house(engine=ScriptedEngine(token_delay_s=0.2))
    c = house.conversation()
    house.manager.send(ADA, c, "Hello")
    for call in CALLS.values():
        with pytest.raises(ConversationNotFound):
            call(house.manager, EVE, c, 1)
    assert house.manager.active_run(ADA, c) is not None


def test_lists_and_memory_show_only_ones_own(house: House) -> None:
    c = house.conversation()
    house.say(c, "My secret")
    house.manager.drop_kv(ADA, c)
    house.say(c, "Another")
    assert house.manager.list_conversations(EVE) == house.manager.list_conversations(EVE, "secret") == []
    memory = house.manager.memory(EVE)
    assert (memory.rows, memory.events, memory.saved_s_total, memory.reused_tokens_total) == ((), (), 0.0, 0)
    assert memory.device_used_bytes == house.engine.allocated_bytes > 0
