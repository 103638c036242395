"""A GPU's arena under the sessions: the budget is the arena, to the byte, and promises kept there are kept in rows."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import sessions.memory.moves.restore
from model_runtime.forward.gpu.arena_forward import ArenaForward
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.errors import ConversationBusy
from sessions.manager import SessionManager
from sessions.memory.saved.speed import RestoreChoice
from sessions.store.store import Store
from sessions.turns.run import Run
from sessions.types import ConversationSettings, MessageStatus
from tests.model_runtime.harness import WatchedEngine, loaded_tiny
from tests.model_runtime.tiny_models import tiny_llama
from tests.polling import pause
from tests.sessions.session_harness import ADA, finish

MIB = 1024 * 1024
GREEDY = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=16))
TEXTS = ("Tell me about the harbour.", "And in the evening?", "Why is that so?", "Is it far?")
PEOPLE = 6


def send(manager: SessionManager, conversation_id: str, text: str) -> Run:
    """A message is finished a moment before its conversation is free again."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return manager.send(ADA, conversation_id, text)
        except ConversationBusy:
            assert time.monotonic() < deadline
            pause(0.005)


def talk(model_dir: Path, data_dir: Path, arena_tokens: int | None) -> list[list[str]]:
    """The answers of all owners, all conversations answered at once, turn by turn."""
    loaded = loaded_tiny(model_dir)
    bytes_per_token = 3 * 2 * 2 * 16 * 4  # 3 layers, keys and values of 2 heads of 16 numbers
    budget_bytes = 64 * MIB if arena_tokens is None else arena_tokens * bytes_per_token
    config = EngineConfig(
        prefill_chunk_tokens=32,
        kv_arena_bytes=None if arena_tokens is None else budget_bytes,
        pinned_host_bytes=MIB,
    )
    engine = WatchedEngine(loaded, config)
    assert engine.engine.info.kv_bytes_per_token == bytes_per_token
    store = Store(data_dir)
    template = ChatTemplate(loaded.tokenizer, {0})
    session_config = SessionConfig(
        budget_bytes, host_kv_budget_bytes=8 * MIB, disk_kv_budget_bytes=8 * MIB, read_ahead=False, model_titles=False
    )
    manager = SessionManager(store, engine.engine, template, session_config)
    manager.start()
    try:
        conversations: list[str] = []
        answers: list[list[str]] = [[] for _ in range(PEOPLE)]
        for number, text in enumerate(TEXTS):
            runs = []
            for place in range(PEOPLE):
                if number == 0:  # an empty conversation is handed out again
                    conversations.append(manager.create_conversation(ADA, GREEDY).conversation_id)
                runs.append(send(manager, conversations[place], f"{text} ({place})"))
            for place, run in enumerate(runs):
                message = finish(run, timeout_s=60)
                assert message.status is MessageStatus.COMPLETE, message.note
                assert message.receipt is not None
                assert number == 0 or message.receipt.fed_tokens == message.receipt.delta_tokens
                answers[place].append(message.text)
        forward = engine.engine._forward  # noqa: SLF001 - what the arena holds in truth
        assert isinstance(forward, ArenaForward) == (arena_tokens is not None)
        if isinstance(forward, ArenaForward):
            held_tokens = forward.arena.capacity_tokens - forward.arena.free_tokens
            held_bytes = sum(kv.allocated_bytes for kv in forward.arena._kvs)  # noqa: SLF001 - what the arena holds in truth
            assert held_bytes == held_tokens * bytes_per_token <= budget_bytes
        return answers
    finally:
        manager.close()
        engine.close()
        store.close()


def test_six_conversations_in_an_arena_for_two_answer_as_in_one_for_six(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))
    model_dir = tiny_llama(tmp_path / "llama")
    crowded = talk(model_dir, tmp_path / "arena", 2 * 256 + 64)
    assert crowded == talk(model_dir, tmp_path / "slabs", None)
