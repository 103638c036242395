"""llama.cpp's slots go to its disk when another conversation needs them, and come back; what did not help is said."""

from __future__ import annotations

import pytest

from model_runtime.interface.events import Finished, FinishReason
from model_runtime.remote.engine import RemoteEngine
from tests.model_runtime.remote.conftest import Connect, Start
from tests.model_runtime.remote.remote_harness import GREEDY, Asked, ask
from tests.model_runtime.remote.scripted_dialects import LlamaCppScript
from tests.model_runtime.remote.scripted_server import ScriptedServer


@pytest.fixture
def saving(start: Start) -> ScriptedServer:
    """Two slots, and a folder for them."""
    dialect = LlamaCppScript()
    dialect.saves_slots = True
    return start(dialect, slots=2)


def script(server: ScriptedServer) -> LlamaCppScript:
    assert isinstance(server.dialect, LlamaCppScript)
    return server.dialect


def ledger_of(name: str, tokens: int = 300) -> tuple[int, ...]:
    return tuple(40 + (ord(name) * n * n + n) % 60 for n in range(tokens))


class Chat:
    """A conversation that grows by every turn."""

    def __init__(self, engine: RemoteEngine, name: str, tokens: int = 300) -> None:
        self.name, self.ledger = name, ledger_of(name, tokens)
        self.engine = engine

    def turn(self) -> Finished:
        asked = ask(self.engine, self.ledger, affinity=self.name)
        assert asked.end.reason is FinishReason.STOP, asked.end.error
        self.kept = len(self.ledger) + len(asked.ids) - 1
        self.ledger = (*self.ledger, *asked.ids, 50, 51, 52)
        return asked.end


def test_a_conversation_keeps_its_slot(saving: ScriptedServer, connect: Connect) -> None:
    engine = connect(saving)
    one, two = Chat(engine, "a"), Chat(engine, "b")
    for turn in range(3):
        for chat in (one, two):
            end = chat.turn()
            assert (end.reused_tokens > 0) == (turn > 0)
            assert end.restored_bytes == 0
    slots = [(body["id_slot"], len(body["prompt"])) for body in saving.asked[1:]]
    assert {slot for slot, _ in slots[::2]} != {slot for slot, _ in slots[1::2]}
    assert [action for action, _ in script(saving).moves if action == "save"] == []


def test_more_conversations_than_slots(saving: ScriptedServer, connect: Connect) -> None:
    engine = connect(saving)
    chats = [Chat(engine, name) for name in "abcd"]
    for chat in chats:
        assert chat.turn().restored_bytes == 0
    for _ in range(2):
        for chat in chats:
            kept = chat.kept
            end = chat.turn()
            assert end.reused_tokens == kept
            assert end.restored_bytes == 10 * kept
            assert end.restore_note == f"The engine restored {kept:,} tokens of this conversation from its disk."
            assert end.restore_s > 0


def test_slots_survive_both_restarts(saving: ScriptedServer, start: Start, connect: Connect) -> None:
    engine = connect(saving)
    chat = Chat(engine, "a")
    chat.turn()
    engine.close()
    assert script(saving).moves[-1][0] == "save"
    saving.close()
    script(saving).slots.clear()
    again = start(saving.dialect, slots=2, port=saving.port)
    kept, chat.engine = chat.kept, connect(again)
    end = chat.turn()
    assert end.reused_tokens == kept
    assert end.restored_bytes == 10 * kept


def test_another_models_slots_are_not_restored(saving: ScriptedServer, start: Start, connect: Connect) -> None:
    engine = connect(saving)
    chat = Chat(engine, "a")
    chat.turn()
    engine.close()
    saving.close()
    other = start(saving.dialect, slots=2, model="Other-7B")
    script(other).slots.clear()
    chat.engine = connect(other)
    assert chat.turn().restored_bytes == 0


def test_a_restore_that_did_not_help_is_said(saving: ScriptedServer, connect: Connect) -> None:
    engine = connect(saving)
    chats = [Chat(engine, name) for name in "abc"]
    for chat in chats:
        chat.turn()
    script(saving).restores_nothing = True
    kept = chats[0].kept
    end = chats[0].turn()
    assert end.reused_tokens == 0
    assert (
        end.restore_note
        == f"The engine restored {kept:,} tokens of this conversation from its disk, and used none of them."
    )


def test_what_cannot_be_moved_is_read_again(saving: ScriptedServer, connect: Connect) -> None:
    engine = connect(saving)
    chats = [Chat(engine, name) for name in "abc"]
    for chat in chats:
        chat.turn()
    script(saving).files.clear()
    end = chats[0].turn()
    assert end.reused_tokens <= 1, "no more than all of these begin with"
    assert (end.restored_bytes, end.restore_note) == (0, "")


def test_short_conversations_are_not_moved(saving: ScriptedServer, connect: Connect) -> None:
    engine = connect(saving)
    for chat in [Chat(engine, name, 40) for name in "abcde"]:
        chat.turn()
    assert script(saving).moves == []


def test_answers_of_one_conversation_at_once_have_two_slots(saving: ScriptedServer, connect: Connect) -> None:
    engine = connect(saving)
    saving.answer, saving.token_delay_s = lambda ledger: [50] * 20 + [saving.end_id], 0.005
    asked = [Asked(engine, ledger_of("a"), GREEDY, affinity="a") for _ in range(4)]
    assert [one.end.reason for one in asked] == [FinishReason.STOP] * 4
    used = [body["id_slot"] for body in saving.asked[1:]]
    assert set(used) == {0, 1}, "the third and the fourth wait"


def test_an_aborted_answer_gives_its_slot_back(saving: ScriptedServer, connect: Connect) -> None:
    engine = connect(saving)
    saving.answer, saving.token_delay_s = lambda ledger: [50] * 60, 0.01
    for _ in range(5):
        asked = Asked(engine, ledger_of("a"), GREEDY, affinity="a")
        asked.until_token()
        asked.generation.abort()
        assert asked.end.reason is FinishReason.ABORTED
    assert {body["id_slot"] for body in saving.asked[1:]} <= {0, 1}


def test_a_server_without_a_folder_chooses_its_slots(server: ScriptedServer, connect: Connect) -> None:
    engine = connect(server)
    Chat(engine, "a").turn()
    assert [body["id_slot"] for body in server.asked] == [-1, -1]
