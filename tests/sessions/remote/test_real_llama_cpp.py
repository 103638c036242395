"""Ten turns on llama.cpp's real server with the embedded model, held against the model as it runs here.

`make test-remote` installs the server (`xllamacpp`, from PyPI) and runs this file.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_runtime.interface.config import RemoteConfig
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.embedded import SMOLLM2
from model_runtime.loading.loaded import LoadedModel
from model_runtime.reference.full_read import full_read
from model_runtime.remote.dialects.llama_cpp import LlamaCpp
from model_runtime.remote.engine import RemoteEngine
from model_runtime.remote.texts import RemoteTexts, load_texts
from model_runtime.text.chat_template import ChatTemplate
from sessions.types import ConversationSettings, MessageStatus, MissReason, Tier
from tests.model_runtime import remote
from tests.model_runtime.remote.remote_harness import GREEDY, ask
from tests.model_runtime.remote.scripted_dialects import LlamaCppScript
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.ports import free_port
from tests.sessions.remote.margins import margins_of
from tests.sessions.remote.twenty_turns import rest_of_answer, talk
from tests.sessions.session_harness import ADA, SessionHarness, finish, prompt_of, until

SCRIPT = Path(str(remote.__file__)).with_name("llama_server.py")  # for another Python
PYTHON = os.environ.get("KEEPWARM_LLAMA_PYTHON", "")
pytestmark = [
    pytest.mark.remote,
    pytest.mark.skipif(not PYTHON, reason="KEEPWARM_LLAMA_PYTHON names no Python with xllamacpp: make test-remote"),
]
QUESTIONS = (
    "Name three fruits.",
    "And three vegetables?",
    "Which of them are red?",
    "Write one sentence about the sea.",
    "Now one about mountains, with the word é in it.",
    "What is 12 + 30?",
    "Say it in words.",
    "What did I ask you first?",
    "Give me a short list of colours.",
    "Thank you. Goodbye!",
)
MOST_MARGIN = 1.0  # in logits: llama.cpp rounds activations to 8 bits, the reference computes in float32


class LlamaServer:
    """The server as a process."""

    def __init__(self, gguf: Path, folder: Path, port: int, slots: int = 2) -> None:
        self.address = f"http://127.0.0.1:{port}"
        arguments = [PYTHON, str(SCRIPT), str(gguf), str(port), str(slots), str(4096 * slots), f"{folder}/"]
        self._log = (folder / "server.log").open("wb")
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env={"PATH": os.environ["PATH"]}
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", (folder / "server.log").read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


@pytest.fixture(scope="module")
def texts(embedded_cache: Path) -> RemoteTexts:
    return load_texts(RemoteConfig(("http://x",), cache_dir=embedded_cache), lambda sentence: None)


@pytest.fixture
def llama(embedded_cache: Path, tmp_path: Path) -> Iterator[LlamaServer]:
    server = LlamaServer(embedded_cache / "embedded" / SMOLLM2.gguf_name, tmp_path, free_port())
    with contextlib.suppress(Exception):
        yield server
    server.kill()


@pytest.fixture
def opened(llama: LlamaServer, texts: RemoteTexts, tmp_path: Path) -> Iterator[SessionHarness]:
    engine: Any = RemoteEngine(RemoteConfig((llama.address,)), texts, lambda sentence: None)
    template: Any = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
    harness = SessionHarness(tmp_path / "data", engine, template, budget_bytes=1)
    yield harness
    harness.close()


@pytest.fixture
def cache_n(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the server itself says at the end of every answer."""
    said: list[int] = []
    piece = LlamaCpp.piece

    def heard(self: LlamaCpp, event: dict[str, Any], so_far: Sequence[int] | None = ()) -> Any:
        if event.get("stop"):
            said.append(event["timings"]["cache_n"])
        return piece(self, event, so_far)

    monkeypatch.setattr(LlamaCpp, "piece", heard)
    return said


def greedy(harness: SessionHarness, tokens: int = 32) -> str:
    sampling = replace(harness.engine.info.default_sampling, temperature=0.0, repetition_penalty=1.0)
    settings = ConversationSettings(replace(sampling, max_new_tokens=tokens))
    return harness.manager.create_conversation(ADA, settings).conversation_id


@pytest.mark.timeout(1800)
def test_ten_turns(
    opened: SessionHarness, cache_n: list[int], loaded_embedded_float32: LoadedModel, texts: RemoteTexts
) -> None:
    conversation = greedy(opened)
    kept = 0
    for number, question in enumerate(QUESTIONS):
        message = opened.say(conversation, question)
        receipt, path = opened.receipt(message), opened.path(conversation)
        assert message.status is MessageStatus.COMPLETE, message.note
        assert receipt.reused_tokens == cache_n[-1], "the receipt says what the server said"
        assert receipt.reused_tokens + receipt.fed_tokens == len(prompt_of(path))
        if number:
            assert receipt.reused_tokens == kept, "everything but what the turn added"
            assert (receipt.tier_before, receipt.miss_reason) == (Tier.ENGINE, None)
        assert message.text == opened.template.plain(path[-1].answer_ids)
        kept = len(opened.ledger(conversation)) - 1
    equal, positions, largest = agreement(opened, conversation, loaded_embedded_float32)
    print(
        f"{equal} of {positions} sampled ids are the reference's own; largest margin {largest:.3f}; cache_n {cache_n}"
    )
    assert texts.fingerprint == loaded_embedded_float32.tokenizer_fingerprint, "the same ids as when it runs here"
    assert largest < MOST_MARGIN
    assert equal / positions > 0.9


def agreement(harness: SessionHarness, conversation: str, loaded: LoadedModel) -> tuple[int, int, float]:
    """Reads the whole ledger here, once, and compares each sampled id with the likeliest one."""
    ledger = harness.ledger(conversation)
    logits = full_read(loaded.model, ledger)
    equal = positions = 0
    largest = 0.0
    end = 0
    for node in harness.path(conversation):
        start, end = end, end + len(node.ids.token_ids)
        if node.role == "assistant":
            for place in range(start, end):
                best = logits[place - 1].max() - logits[place - 1][ledger[place]]
                equal, positions, largest = equal + (float(best) == 0.0), positions + 1, max(largest, float(best))
    return equal, positions, largest


@pytest.mark.timeout(1800)
def test_twenty_turns_of_every_kind(
    llama: LlamaServer, texts: RemoteTexts, tmp_path: Path, loaded_embedded_float32: LoadedModel
) -> None:
    """The same script as through scripted servers. The engine here, which computes in float32, gets the ledgers of the
    real one: each sampled id is its own likeliest one, or within the margin."""
    engine: Any = RemoteEngine(RemoteConfig((llama.address,), context_limit_tokens=768), texts, lambda sentence: None)
    template: Any = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
    harness = SessionHarness(tmp_path / "data", engine, template, budget_bytes=1)
    try:
        found = talk(harness, SamplingParams(temperature=0.0, max_new_tokens=8), template.takes_tools, 120.0)
    finally:
        harness.close()
    assert len(found.ledgers) >= 20
    assert "Start a new" in found.refused or "fit" in found.refused
    replayed = ScriptedServer(LlamaCppScript(), texts.tokenizer, context_tokens=768)
    replayed.answer = lambda ledger: rest_of_answer(found, ledger) or [replayed.end_id]
    engine = RemoteEngine(RemoteConfig((replayed.address,)), texts, lambda sentence: None)
    harness = SessionHarness(tmp_path / "again", engine, template, budget_bytes=1)
    try:
        again = talk(harness, SamplingParams(temperature=0.0, max_new_tokens=8), template.takes_tools)
    finally:
        harness.close()
        replayed.close()
    assert (again.ledgers, again.sent, again.refused) == (found.ledgers, found.sent, found.refused)
    margins = margins_of(loaded_embedded_float32, found.answers)
    equal = sum(margin == 0.0 for margin in margins)
    print(
        f"{len(found.ledgers)} turns: {equal} of {len(margins)} ids are the likeliest here; margin {max(margins):.3f}"
    )
    assert max(margins) < MOST_MARGIN
    assert equal / len(margins) > 0.9


@pytest.mark.timeout(600)
def test_characters_of_several_tokens(
    llama: LlamaServer, texts: RemoteTexts, loaded_embedded_float32: LoadedModel
) -> None:
    """Of each character the server's stream has the last id alone; a limit falls into one of them."""
    engine = RemoteEngine(RemoteConfig((llama.address,)), texts, lambda sentence: None)
    backend = texts.tokenizer.backend_tokenizer
    ledger = tuple(backend.encode("🚀👩𝔘 = 🚀👩𝔘\n" * 6 + "🚀👩", add_special_tokens=False).ids)
    try:
        asked = {limit: ask(engine, ledger, replace(GREEDY, max_new_tokens=limit)) for limit in (13, 15, 24)}
    finally:
        engine.close()
    for limit, one in asked.items():
        assert (one.end.reason, len(one.ids)) == (FinishReason.LENGTH, limit), one.end.error
        assert one.ids == asked[24].ids[:limit]
    assert "𝔘 = 🚀👩𝔘\n" in asked[24].text
    margins = margins_of(loaded_embedded_float32, {ledger: tuple(asked[24].ids)})
    print(f"24 ids of {asked[24].text!r}: margin {max(margins):.3f}")
    assert max(margins) < MOST_MARGIN


@pytest.mark.timeout(600)
def test_two_conversations_at_once_and_a_branch(opened: SessionHarness, cache_n: list[int]) -> None:
    first, second = greedy(opened), ""
    opened.say(first, QUESTIONS[0])
    second = greedy(opened)
    runs = [opened.manager.send(ADA, one, QUESTIONS[1]) for one in (first, second)]
    assert {finish(run, 120).status for run in runs} == {MessageStatus.COMPLETE}
    message = finish(opened.manager.regenerate(ADA, first), 120)
    receipt = opened.receipt(message)
    assert receipt.fed_tokens <= receipt.delta_tokens
    assert receipt.reused_tokens == cache_n[-1]
    assert len(cache_n) == 4


@pytest.mark.timeout(600)
def test_a_server_that_is_killed_and_comes_back(
    opened: SessionHarness, llama: LlamaServer, embedded_cache: Path, tmp_path: Path
) -> None:
    conversation = greedy(opened, 200)
    run = opened.manager.send(ADA, conversation, "Tell me a long story about a kettle.")
    until(lambda: run.snapshot().sampled_tokens > 5, 60)
    llama.kill()
    message = finish(run, 60)
    assert message.status is MessageStatus.INTERRUPTED
    assert message.can_continue
    kept = opened.path(conversation)[-1].answer_ids
    assert len(kept) > 5
    port = int(llama.address.rpartition(":")[2])
    again = LlamaServer(embedded_cache / "embedded" / SMOLLM2.gguf_name, tmp_path, port)
    try:
        message = finish(opened.manager.continue_answer(ADA, conversation), 120)
        assert message.status is MessageStatus.COMPLETE, message.note
        assert opened.path(conversation)[-1].answer_ids[: len(kept)] == kept
        receipt = opened.receipt(message)
        assert receipt.miss_reason is MissReason.ENGINE_HELD_LESS
        assert "The engine had " in receipt.miss_detail
    finally:
        again.kill()


@pytest.mark.timeout(1200)
def test_slots_go_to_the_servers_disk_and_come_back(opened: SessionHarness, cache_n: list[int], tmp_path: Path) -> None:
    """Three conversations on two slots."""
    text = "A kettle is a vessel in which water is boiled for tea, and number {} is on the stove. "
    conversations: list[str] = []
    for number in range(3):
        conversations.append(greedy(opened, 8))
        opened.say(conversations[-1], "".join(text.format(10 * number + line) for line in range(16)))
    kept = len(opened.ledger(conversations[0])) - 1
    receipt = opened.receipt(opened.say(conversations[0], "Which one is the first?"))
    print(f"restored {receipt.restored_bytes:,} bytes in {receipt.restore_s:.3f} s: {receipt.choice} cache_n {cache_n}")
    assert receipt.restored_bytes > 0
    assert receipt.reused_tokens == cache_n[-1] == kept, "the restore really avoided the reading"
    assert receipt.choice == f"The engine restored {kept:,} tokens of this conversation from its disk."
    assert [path.suffix for path in tmp_path.glob("keepwarm-*")] == [".bin", ".bin"]
