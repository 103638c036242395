"""Another owner's conversation does not exist, whatever is asked of it."""

from __future__ import annotations

import pytest

from app.access.public_link import Share
from app.page.chat import Chat
from app.page.panels import Panels
from app.process_memory import ProcessMeter
from sessions.errors import ConversationNotFound
from tests.sessions.session_harness import ADA, SessionHarness
from tests.sessions.strange_calls import arguments, mangled, methods_taking

EVE = "eve"
METHODS = methods_taking("conversation_id")


def test_every_method_takes_the_owner_first() -> None:
    assert len(METHODS) >= 20
    for signature in METHODS.values():
        assert list(signature.parameters)[1:3] == ["owner_id", "conversation_id"]


def test_a_stranger_finds_nothing_by_any_method(harness: SessionHarness) -> None:
    """Every public method, with a foreign owner's ids and ids like them; the calls are made from the signatures."""
    c = harness.conversation()
    harness.say(c, "My secret")
    before, message_id = harness.manager.view(ADA, c), harness.manager.view(ADA, c).messages[0].message_id
    strangers = [(owner, c) for owner in (EVE, "nobody", "", "ADA", "ada ", "%")]
    tries = strangers + [(owner, one) for owner in (ADA, EVE) for one in mangled(c)]
    calls = 0
    for name, signature in METHODS.items():
        for owner, conversation in tries:
            given = {"owner_id": owner, "conversation_id": conversation, "message_id": message_id}
            with pytest.raises(ConversationNotFound) as refused:
                getattr(harness.manager, name)(**arguments(signature, **given))
            assert "secret" not in str(refused.value)
            calls += 1
    assert calls >= 316
    assert harness.manager.view(ADA, c) == before
    assert harness.manager.list_conversations(EVE) == []


def test_what_takes_only_an_owner_shows_only_that_owners(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "My secret")
    taking = methods_taking("owner_id").keys() - METHODS.keys()
    assert taking >= {"list_conversations", "memory_view"}
    for name in sorted(taking):
        shown = repr(getattr(harness.manager, name)(**arguments(methods_taking("owner_id")[name], owner_id=EVE)))
        assert c not in shown
        assert "secret" not in shown


@pytest.mark.parametrize("actor", [Chat, Panels])
def test_the_page_finds_nothing_of_a_stranger_by_any_action(
    harness: SessionHarness, actor: type[Chat] | type[Panels]
) -> None:
    c = harness.conversation()
    harness.say(c, "My secret")
    before = harness.manager.view(ADA, c)
    page = Chat(harness.manager) if actor is Chat else Panels(harness.manager, Share(), ProcessMeter())
    names = [*(page._actions if isinstance(page, Chat) else page._answers), "follow", "nonsense"]  # noqa: SLF001 - every name that the page can send
    asked = 0
    for name in names:
        for conversation in (c, *mangled(c)):
            for message_id in (before.messages[0].message_id, before.messages[1].message_id):
                question = {"action": name, "ask": name, "conversation_id": conversation, "message_id": message_id,
                            "text": "Hello", "title": "Mine now", "draft": "Hello", "step": 1, "seq": 1, "ahead": True,
                            "memory": True}  # fmt: skip
                if isinstance(page, Chat):
                    reply = page.act(EVE, question)
                    assert "messages" not in reply
                else:
                    reply = page.ask(EVE, question)
                    reply.pop("share", None)
                for shown in ("My secret", *(() if conversation != c else (c,))):
                    assert shown not in repr(reply)
                asked += 1
    assert asked >= 200
    assert harness.manager.view(ADA, c) == before


def test_a_busy_conversation_is_not_found_either(make_harness) -> None:  # type: ignore[no-untyped-def]
    """ "Busy" would tell a stranger that the id exists."""
    from tests.sessions.scripted_engine import ScriptedEngine

    harness = make_harness(engine=ScriptedEngine(token_delay_s=0.2))
    c = harness.conversation()
    harness.manager.send(ADA, c, "Hello")
    for name, signature in METHODS.items():
        with pytest.raises(ConversationNotFound):
            getattr(harness.manager, name)(**arguments(signature, owner_id=EVE, conversation_id=c))
    assert harness.manager.active_run(ADA, c) is not None


def test_lists_and_memory_show_only_ones_own(harness: SessionHarness) -> None:
    c = harness.conversation()
    harness.say(c, "My secret")
    harness.manager.drop_kv(ADA, c)
    harness.say(c, "Another")
    assert harness.manager.list_conversations(EVE) == harness.manager.list_conversations(EVE, "secret") == []
    memory = harness.manager.memory_view(EVE)
    assert (memory.rows, memory.events, memory.saved_s_total, memory.reused_tokens_total) == ((), (), 0.0, 0)
    assert memory.device_used_bytes == harness.engine.allocated_bytes > 0
