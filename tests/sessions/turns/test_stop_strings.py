"""After a stop string: the ledger holds what was shown, and the next turn goes on from there, warm or restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import sessions.memory.moves.restore
from model_runtime.text.chat_template import ChatTemplate
from sessions.ledger.ledger import fold
from sessions.manager import SessionManager
from sessions.memory.saved.speed import RestoreChoice
from sessions.store.store import Store
from sessions.types import ConversationSettings, MessageView, Receipt
from tests.model_runtime.harness import WatchedEngine
from tests.model_runtime.tiny_models import tiny_llama
from tests.sessions.real_session_harness import GREEDY, load, manager_of
from tests.sessions.session_harness import ADA, finish

TEXTS = ("Tell me about the harbour in the morning.", "And in the evening?", "Why?")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@contextmanager
def serving(
    model_dir: Path, data_dir: Path, preset_stops: tuple[str, ...] = ()
) -> Iterator[tuple[SessionManager, Store]]:
    loaded = replace(load(model_dir), stop_strings=preset_stops)
    engine, store = WatchedEngine(loaded), Store(data_dir)
    manager = manager_of(store, engine, loaded)
    manager.start()
    try:
        yield manager, store
    finally:
        manager.close()
        engine.close()
        store.close()


def asked(stops: tuple[str, ...]) -> ConversationSettings:
    return ConversationSettings(replace(GREEDY.sampling, stop_strings=stops))


@pytest.fixture(scope="module")
def stops(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Pieces of what the model answers to the first text, each a letter further on."""
    with serving(model_dir, tmp_path_factory.mktemp("plain")) as (manager, _):
        c = manager.create_conversation(ADA, GREEDY).conversation_id
        text = finish(manager.send(ADA, c, TEXTS[0]), timeout_s=60).text
    middle = len(text) // 2
    return tuple(
        text[start : start + 3] for start in range(middle, middle + 3) if "\ufffd" not in text[start : start + 3]
    )


def said(manager: SessionManager, conversation_id: str, text: str) -> tuple[MessageView, Receipt]:
    message = finish(manager.send(ADA, conversation_id, text), timeout_s=60)
    assert message.receipt is not None, message.note
    return message, message.receipt


@pytest.mark.parametrize("is_preset", [True, False])
def test_the_next_turn_sees_what_was_shown(
    model_dir: Path, tmp_path: Path, stops: tuple[str, ...], is_preset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))
    loaded = load(model_dir)
    template = ChatTemplate(loaded.tokenizer, {0})
    for number, stop in enumerate(stops):
        data_dir = tmp_path / str(number)
        settings = GREEDY if is_preset else asked((stop,))
        preset_stops = (stop,) if is_preset else ()
        with serving(model_dir, data_dir, preset_stops) as (manager, store):
            c = manager.create_conversation(ADA, settings).conversation_id
            answer, receipt = said(manager, c, TEXTS[0])
            path = store.messages.path(store.conversation(ADA, c).leaf_id)
            ids = path[-1].answer_ids
            assert stop not in answer.text
            assert loaded.tokenizer.decode(ids) == answer.text
            assert receipt.sampled_tokens >= len(ids) - 1
            before = fold(path)
            _, receipt = said(manager, c, TEXTS[1])
            assert (receipt.fed_tokens, receipt.miss_reason) == (receipt.delta_tokens, None)
            path = store.messages.path(store.conversation(ADA, c).leaf_id)
            added = template.next_turn(False, TEXTS[1])
            assert fold(path[:-1]) == before + added
            assert receipt.delta_tokens == len(added) + 1
        with serving(model_dir, data_dir, preset_stops) as (manager, _):
            _, receipt = said(manager, c, TEXTS[2])
            assert (receipt.fed_tokens, receipt.miss_reason) == (receipt.delta_tokens, None)
