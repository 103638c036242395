"""A chat with a model of long RoPE: every token equals transformers' own read of the ledger up to it, on both sides of
the length at which the frequencies change, and a receipt says when all was read again for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

import sessions.memory.moves.restore
import sessions.memory.moves.save
import sessions.memory.saved.compaction
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.ledger.ledger import fold
from sessions.maintenance.doctor import Report, verify_everything
from sessions.manager import SessionManager
from sessions.memory.saved.chains import BEGINNING_TOKENS
from sessions.memory.saved.speed import RestoreChoice
from sessions.store.store import Store
from sessions.types import ConversationSettings, MissReason, Receipt, Tier
from tests.model_runtime.harness import WatchedEngine, full_read, loaded_tiny
from tests.model_runtime.tiny_models import LONG_ROPE_TOKENS, SHORT_ROPE_TOKENS, tiny_long_rope
from tests.sessions.session_harness import ADA, finish, until

MIB = 1024 * 1024
SHORT = SHORT_ROPE_TOKENS
SETTINGS = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=6))
LONG_TEXT = "Tell me about the harbour in the morning, and the boats, and the people who wait there for them, and why."


@cache
def loaded_pair(model_dir: Path) -> tuple[LoadedModel, LoadedModel]:
    """The model for engines, and an untouched copy."""
    return loaded_tiny(model_dir), loaded_tiny(model_dir)


class Server:
    """One life of a server."""

    def __init__(self, model_dir: Path, data_dir: Path, **config: object) -> None:
        loaded, reference = loaded_pair(model_dir)
        self._reference = reference.model
        self.engine = WatchedEngine(loaded, EngineConfig(prefill_chunk_tokens=32), LONG_ROPE_TOKENS)
        self.store = Store(data_dir)
        settings = {"disk_kv_budget_bytes": 64 * MIB, "read_ahead": False, "model_titles": False, **config}
        session_config = SessionConfig(8 * MIB, draft_quiet_s=0.0, **settings)  # type: ignore[arg-type]
        self.manager = SessionManager(
            self.store, self.engine.engine, ChatTemplate(loaded.tokenizer, {0}), session_config
        )
        self.manager.start()

    def new(self) -> str:
        """An empty conversation: the same as before, until something was said in it."""
        return self.manager.create_conversation(ADA, SETTINGS).conversation_id

    def ledger(self, conversation_id: str) -> tuple[int, ...]:
        return fold(self.store.messages.path(self.store.conversation(ADA, conversation_id).leaf_id))

    def say(self, conversation_id: str, text: str = "Go on.") -> Receipt:
        message = finish(self.manager.send(ADA, conversation_id, text), timeout_s=60)
        assert message.receipt is not None, message.note
        return message.receipt

    def edit_first(self, conversation_id: str, text: str) -> Receipt:
        first = self.manager.view(ADA, conversation_id).messages[0]
        message = finish(self.manager.edit(ADA, conversation_id, first.message_id, text), timeout_s=60)
        assert message.receipt is not None, message.note
        return message.receipt

    def grow_to(self, conversation_id: str, tokens: int) -> list[Receipt]:
        """Turns until the ledger has that many tokens."""
        receipts = []
        while len(self.ledger(conversation_id)) < tokens:
            receipts.append(self.say(conversation_id))
        return receipts

    def saved(self, conversation_id: str) -> None:
        """Waits until all of the conversation is on disk, with the frequencies of its length."""
        ids = self.ledger(conversation_id)[:-1]
        disk, is_long = self.manager.memory.saved_kvs.disk, len(ids) > SHORT
        until(lambda: disk.chain(ADA, conversation_id, ids, is_long_rope=is_long).useful_tokens == len(ids))

    def check(self) -> None:
        """Every sampled position so far equals a read of exactly the ids before it."""
        for ids, logits in self.engine.logits.items():
            torch.testing.assert_close(logits, full_read(self._reference, ids)[-1], atol=1e-4, rtol=0)

    def verify(self, conversation_id: str) -> None:
        """Its logits along the way are those of rows on their way to the whole length: they are not checked."""
        self.check()
        found = self.manager.verify(ADA, conversation_id).wait(30)
        assert found is not None
        assert found.agrees, found.sentence
        self.engine.logits.clear()

    def close(self) -> None:
        self.manager.close()
        self.engine.close()
        self.store.close()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_long_rope(tmp_path_factory.mktemp("tiny") / "long-rope")


@pytest.fixture(autouse=True)
def _always_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading 100 tokens with a model of 3 layers takes no longer than opening a file."""
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))


@contextmanager
def serving(model_dir: Path, data_dir: Path, **config: object) -> Iterator[Server]:
    server = Server(model_dir, data_dir, **config)
    try:
        yield server
        server.check()
    finally:
        server.close()


def test_a_chat_is_read_again_once_and_says_so(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path) as server:
        c = server.new()
        receipts = server.grow_to(c, 3 * SHORT)
        changed = [r for r in receipts if r.miss_reason is not None]
        assert [r.miss_reason for r in changed] == [MissReason.ROPE_CHANGED]
        assert "other rotary frequencies" in changed[0].miss_detail
        assert all(r.fed_tokens == r.delta_tokens for r in receipts if r not in changed)
        server.verify(c)


def test_a_crossing_within_an_answer_says_how_much_was_read_again(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path) as server:
        settings = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=SHORT))
        c = server.manager.create_conversation(ADA, settings).conversation_id
        receipt = server.say(c)
        assert (receipt.miss_reason, receipt.fed_tokens) == (MissReason.ROPE_CHANGED, receipt.delta_tokens)
        assert receipt.miss_detail.startswith("Within this answer")
        assert f"so {SHORT} tokens were read again." in receipt.miss_detail
        after = server.say(c)
        assert (after.miss_reason, after.fed_tokens) == (None, after.delta_tokens)


def test_an_edit_back_and_forth_reads_with_the_frequencies_of_the_new_length(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path) as server:
        c = server.new()
        server.say(c, LONG_TEXT)
        server.grow_to(c, SHORT + 30)
        server.edit_first(c, LONG_TEXT[:20])
        assert len(server.ledger(c)) < SHORT
        server.edit_first(c, f"{LONG_TEXT} {LONG_TEXT}")
        assert len(server.ledger(c)) > SHORT
        assert server.say(c).miss_reason is None


def test_both_sides_come_back_after_restarts(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path) as server:
        c = server.new()
        server.say(c, "Hello.")
        assert len(server.ledger(c)) < SHORT - 15
        server.saved(c)
    with serving(model_dir, tmp_path) as server:
        short = server.say(c, "Why?")
        assert (short.tier_before, short.miss_reason) == (Tier.DISK, None)
        assert short.fed_tokens == short.delta_tokens
        server.saved(c)
    with serving(model_dir, tmp_path) as server:
        crossed = server.say(c, LONG_TEXT)
        assert (crossed.miss_reason, crossed.reused_tokens) == (MissReason.ROPE_CHANGED, 0)
        server.saved(c)
    with serving(model_dir, tmp_path) as server:
        beyond = server.say(c)
        assert (beyond.tier_before, beyond.miss_reason) == (Tier.DISK, None)
        assert beyond.fed_tokens == beyond.delta_tokens
        server.manager.park(ADA, c)
        server.verify(c)
        back = server.edit_first(c, "Hello.")  # the same beginning; its short rows are still on disk
        assert (back.tier_before, back.miss_reason) == (Tier.DISK, None)
        assert back.fed_tokens == back.delta_tokens


def test_the_offline_check_reads_files_of_both_sides(model_dir: Path, tmp_path: Path) -> None:
    said: list[str] = []
    with serving(model_dir, tmp_path) as server:
        c = server.new()
        server.say(c, "Hello.")
        server.saved(c)
        server.say(c, LONG_TEXT)
        server.saved(c)
        server.check()
        report = Report(said.append)
        verify_everything(server.store, server.engine.engine, report)
        assert not report.wrong, said
        server.engine.logits.clear()


def test_conversations_on_both_sides_answer_together(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path) as server:
        chats, texts = [], ("Hello.", LONG_TEXT[:70], LONG_TEXT * 2)
        for text in texts:
            chats.append(server.new())
            server.say(chats[-1], text)
        for _ in range(3):
            runs = [server.manager.send(ADA, c, text) for c, text in zip(chats, texts, strict=True)]
            for run in runs:
                assert finish(run, timeout_s=60).receipt is not None


def test_shared_beginnings_are_shared_on_one_side_only(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path, disk_kv_budget_bytes=0) as server:
        first = server.new()
        server.say(first, LONG_TEXT * 2)
        second = server.new()
        shared = server.say(second, f"{LONG_TEXT * 2} And the night?")
        assert shared.shared_from == first
        assert shared.shared_tokens > SHORT
        server.check()
        prefixes = server.manager.memory.shared_prefixes
        assert prefixes.held_tokens(ADA, "another", server.ledger(first), is_long_rope=True) > SHORT
        assert prefixes.held_tokens(ADA, "another", server.ledger(first), is_long_rope=False) == 0


def test_drafts_and_titles_never_spoil_what_is_kept(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path, read_ahead=True, model_titles=True) as server:
        c = server.new()
        server.say(c, "Hello.")
        until(lambda: server.manager.is_idle)
        for text in ("Why?", LONG_TEXT, "Go on.", "Go on."):
            for draft in (text[:3], text, f"{text} {LONG_TEXT}", text):
                server.manager.read_ahead(ADA, c, draft)
                until(lambda: server.manager.is_idle)
            receipt = server.say(c, text)
            assert receipt.fed_tokens <= receipt.delta_tokens
            until(lambda: server.manager.is_idle)


def test_a_title_is_not_worth_a_change_of_frequencies(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path, model_titles=True) as server:
        c = server.new()
        server.say(c, "Hello.")  # a title's question would pass the length
        until(lambda: server.manager.is_idle)
        receipt = server.say(c, "Why?")
        assert (receipt.miss_reason, receipt.fed_tokens) == (None, receipt.delta_tokens)


def test_host_memory_keeps_both_sides_apart(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path, host_kv_budget_bytes=8 * MIB, disk_kv_budget_bytes=0) as server:
        c = server.new()
        server.say(c, "Hello.")
        server.manager.park(ADA, c, Tier.HOST)
        short = server.say(c, "Why?")
        assert (short.tier_before, short.fed_tokens) == (Tier.HOST, short.delta_tokens)
        server.manager.park(ADA, c, Tier.HOST)
        crossed = server.say(c, LONG_TEXT)
        assert (crossed.miss_reason, crossed.reused_tokens) == (MissReason.ROPE_CHANGED, 0)
        server.manager.park(ADA, c, Tier.HOST)
        beyond = server.say(c)
        assert (beyond.tier_before, beyond.fed_tokens) == (Tier.HOST, beyond.delta_tokens)
        server.manager.park(ADA, c, Tier.HOST)
        server.verify(c)


def test_files_of_both_sides_are_joined_each_with_its_own(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.memory.moves.save, "IDLE_S", 3600.0)
    monkeypatch.setattr(sessions.memory.saved.compaction, "MIN_FILES", 2)
    with serving(model_dir, tmp_path) as server:
        c = server.new()
        for text in ("Hello.", "Why?", LONG_TEXT, "Go on.", "Go on."):
            server.say(c, text)
            server.saved(c)
        disk = server.manager.memory.saved_kvs.disk
        assert len(server.store.segments.every()) == 5
        assert [disk.compact(1000) for _ in range(3)] == [True, True, False]
        assert len(server.store.segments.every()) == 2
    with serving(model_dir, tmp_path) as server:
        beyond = server.say(c)
        assert (beyond.tier_before, beyond.fed_tokens) == (Tier.DISK, beyond.delta_tokens)
        back = server.edit_first(c, "Hello.")
        assert (back.tier_before, back.fed_tokens) == (Tier.DISK, back.delta_tokens)
        server.check()
        report = Report(lambda sentence: None)
        verify_everything(server.store, server.engine.engine, report)
        assert not report.wrong
        server.engine.logits.clear()


def test_a_draft_is_read_for_the_turn_that_it_would_make(model_dir: Path, tmp_path: Path) -> None:
    """A draft's stable part may end before the length that its turn passes."""
    with serving(model_dir, tmp_path, read_ahead=True, disk_kv_budget_bytes=0) as server:
        sides = set()
        for words in range(17, 28):
            c = server.new()
            server.say(c, "Hello.")
            text = "so " * words
            server.manager.read_ahead(ADA, c, text)
            until(lambda: server.manager.is_idle)
            receipt = server.say(c, text)
            assert receipt.miss_reason is None or receipt.miss_detail.startswith("Within this answer")
            assert receipt.fed_tokens < receipt.delta_tokens
            sides.add(len(server.ledger(c)) - receipt.sampled_tokens > SHORT)
        assert sides == {False, True}


def test_what_was_dropped_by_hand_too_is_read_again_for_its_length(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path, disk_kv_budget_bytes=0) as server:
        c = server.new()
        server.say(c, "Hello.")
        server.manager.drop_kv(ADA, c)
        assert server.say(c, "Why?").miss_reason is MissReason.EVICTED
        server.manager.drop_kv(ADA, c)
        assert server.say(c, LONG_TEXT).miss_reason is MissReason.ROPE_CHANGED
        server.manager.drop_kv(ADA, c)
        assert server.say(c).miss_reason is MissReason.EVICTED


def test_a_long_beginning_is_borrowed_from_the_files_of_another_conversation(model_dir: Path, tmp_path: Path) -> None:
    with serving(model_dir, tmp_path) as server:
        first, many = server.new(), " ".join([LONG_TEXT] * 7)
        server.say(first, many)
        server.saved(first)
        assert len(server.ledger(first)) > BEGINNING_TOKENS
        server.manager.park(ADA, first)
        second = server.new()
        borrowed = server.say(second, f"{many} And the night?")
        assert borrowed.shared_from == first
        assert borrowed.shared_tokens >= BEGINNING_TOKENS
        server.verify(second)
