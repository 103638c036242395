"""The disk tier over the real engine and a tiny model: only the delta is fed after a restart, to the same text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import sessions.memory.moves.restore
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.kv.slab import KVSlab
from model_runtime.text.chat_template import ChatTemplate
from sessions.config import SessionConfig
from sessions.manager import SessionManager
from sessions.memory.saved.speed import RestoreChoice
from sessions.store.store import Store
from sessions.types import ConversationSettings, Receipt, Tier
from tests.model_runtime.harness import WatchedEngine, loaded_tiny
from tests.model_runtime.tiny_classic import TINY_CLASSIC
from tests.model_runtime.tiny_models import tiny_llama
from tests.sessions.session_harness import ADA, finish, until

MIB = 1024 * 1024
GREEDY = ConversationSettings(SamplingParams(temperature=0, max_new_tokens=24))
TEXTS = ("Tell me about the harbour in the morning, and the boats.", "And in the evening?", "Why is that so?")


@dataclass
class Server:
    """One life of a server."""

    manager: SessionManager
    engine: WatchedEngine

    def say(self, conversation_id: str, text: str) -> tuple[str, Receipt]:
        message = finish(self.manager.send(ADA, conversation_id, text), timeout_s=60)
        assert message.receipt is not None, message.note
        return message.text, message.receipt


@pytest.fixture(scope="module", params=["llama", "bloom", "falcon-alibi", "falcon-groups", "gptj", "mpt"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint: Llama, and those whose attention is replaced."""
    make = tiny_llama if request.param == "llama" else TINY_CLASSIC[request.param]
    return make(tmp_path_factory.mktemp("tiny") / request.param)


@contextmanager
def serving(model_dir: Path, data_dir: Path, disk_bytes: int = 64 * MIB, read_ahead: bool = False) -> Iterator[Server]:
    loaded = loaded_tiny(model_dir)
    engine = WatchedEngine(loaded)
    store = Store(data_dir)
    template = ChatTemplate(loaded.tokenizer, {0})
    config = SessionConfig(
        8 * MIB, disk_kv_budget_bytes=disk_bytes, read_ahead=read_ahead, model_titles=False, draft_quiet_s=0.0
    )
    manager = SessionManager(store, engine.engine, template, config)
    manager.start()
    try:
        yield Server(manager, engine)
    finally:
        manager.close()
        engine.close()
        store.close()


@pytest.fixture
def uncached(model_dir: Path, tmp_path: Path) -> list[str]:
    """The three answers when every turn reads everything."""
    with serving(model_dir, tmp_path / "uncached", disk_bytes=0) as server:
        c = server.manager.create_conversation(ADA, GREEDY).conversation_id
        answers = []
        for text in TEXTS:
            answers.append(server.say(c, text)[0])
            server.manager.drop_kv(ADA, c)
        return answers


def test_each_turn_after_another_restart_of_the_server(
    model_dir: Path, tmp_path: Path, uncached: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reading 100 tokens with a model of 3 layers takes no longer than opening a file.
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))
    with serving(model_dir, tmp_path / "data") as server:
        c = server.manager.create_conversation(ADA, GREEDY).conversation_id
        answers = [server.say(c, TEXTS[0])[0]]
    for text in TEXTS[1:]:
        with serving(model_dir, tmp_path / "data") as server:
            before = server.engine.fed
            answer, receipt = server.say(c, text)
            answers.append(answer)
            assert (receipt.tier_before, receipt.miss_reason) == (Tier.DISK, None)
            assert receipt.fed_tokens == receipt.delta_tokens < receipt.reused_tokens
            # Counted at the model's input: the delta, every sampled token but the last, and what was guessed wrongly.
            rejected_tokens = receipt.drafted_tokens - receipt.accepted_tokens
            assert server.engine.fed - before == receipt.delta_tokens + receipt.sampled_tokens - 1 + rejected_tokens
    assert answers == uncached


def test_a_damaged_file_is_read_again_to_the_same_text(
    model_dir: Path, tmp_path: Path, uncached: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))
    with serving(model_dir, tmp_path / "data") as server:
        c = server.manager.create_conversation(ADA, GREEDY).conversation_id
        assert server.say(c, TEXTS[0])[0] == uncached[0]
        server.manager.park(ADA, c)
        path = next((tmp_path / "data" / "kv").rglob("*.kv"))
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        answer, receipt = server.say(c, TEXTS[1])
        assert answer == uncached[1]
        assert receipt.miss_reason == "snapshot_refused"
        assert "its checksum is wrong" in receipt.miss_detail


def test_verifying_finds_planted_damage_on_the_device_and_on_disk(
    model_dir: Path, tmp_path: Path, uncached: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.memory.moves.restore, "choose", lambda *args: RestoreChoice(True, "For the test."))
    with serving(model_dir, tmp_path / "data") as server:
        c = server.manager.create_conversation(ADA, GREEDY).conversation_id
        assert server.say(c, TEXTS[0])[0] == uncached[0]
        first = server.manager.verify(ADA, c).wait(30)
        assert first is not None
        assert first.agrees
        assert first.logit_difference < 1e-4
        until(lambda: server.manager.memory_view(ADA).rows[0].disk_tokens > 0)
        kv = server.manager.memory.held.slots[c].kv
        assert isinstance(kv, KVSlab)
        with torch.inference_mode():
            kv.values[2][:, 7] *= -1
        second = server.manager.verify(ADA, c).wait(30)
        assert second is not None
        assert "its memory on the device was wrong from token 8 on and was dropped" in second.sentence
        assert server.manager.memory_view(ADA).rows[0].tier is Tier.DISK
        answer, receipt = server.say(c, TEXTS[1])
        assert (answer, receipt.tier_before) == (uncached[1], Tier.DISK)
        server.manager.park(ADA, c)
        assert server.manager.verify(ADA, c).wait(30).agrees  # type: ignore[union-attr]
        path = next((tmp_path / "data" / "kv").rglob("*.kv"))
        path.write_bytes(path.read_bytes()[:-1])
        assert server.manager.verify(ADA, c).wait(30).agrees is False  # type: ignore[union-attr]
        assert server.say(c, TEXTS[2])[0] == uncached[2]


def test_messages_that_were_read_whole_before_they_were_sent_get_the_same_answers(
    model_dir: Path, tmp_path: Path, uncached: list[str]
) -> None:
    with serving(model_dir, tmp_path / "data", read_ahead=True) as server:
        c = server.manager.create_conversation(ADA, GREEDY).conversation_id
        for text, expected in zip(TEXTS, uncached, strict=True):
            for draft in (text[:7], text, f"{text} And", text):  # typed, gone on from, and taken back
                server.manager.read_ahead(ADA, c, draft)
                until(lambda: server.manager.is_idle)
            before = server.engine.fed
            answer, receipt = server.say(c, text)
            assert answer == expected
            assert (receipt.fed_tokens, receipt.ahead_tokens) == (1, receipt.delta_tokens - 1)
            rejected_tokens = receipt.drafted_tokens - receipt.accepted_tokens
            assert server.engine.fed - before >= 1 + receipt.sampled_tokens - 1 + rejected_tokens
            until(lambda: server.manager.is_idle)
