"""The same twenty turns through the engine here and through servers of every dialect: the same ids, to the last one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.remote.texts import RemoteTexts
from model_runtime.text.chat_template import ChatTemplate
from tests.model_runtime.harness import WatchedEngine, loaded_tiny
from tests.model_runtime.remote.remote_harness import connected
from tests.model_runtime.remote.scripted_dialects import LlamaCppScript, SglangScript, VllmScript
from tests.model_runtime.remote.scripted_server import ScriptedServer
from tests.model_runtime.tiny_models import tiny_llama
from tests.sessions.remote.twenty_turns import Talk, rest_of_answer, talk
from tests.sessions.session_harness import SessionHarness

CONTEXT_TOKENS = 512
SAMPLING = SamplingParams(temperature=0.0, max_new_tokens=6)
SLOTS = "llama.cpp that saves slots"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """In float32, as transformers runs it."""
    return loaded_tiny(tiny_llama(tmp_path_factory.mktemp("tiny") / "llama"))


@pytest.fixture(scope="module")
def template(loaded: LoadedModel) -> Any:
    return ChatTemplate(loaded.tokenizer, frozenset())


@pytest.fixture(scope="module")
def here(loaded: LoadedModel, template: Any, tmp_path_factory: pytest.TempPathFactory) -> Talk:
    """Through the engine here."""
    engine = WatchedEngine(loaded, context_limit_tokens=CONTEXT_TOKENS)
    harness = SessionHarness(tmp_path_factory.mktemp("here"), engine.engine, template)  # type: ignore[arg-type]
    try:
        return talk(harness, SAMPLING, template.takes_tools)
    finally:
        harness.close()
        engine.close()


@pytest.fixture
def elsewhere(
    loaded: LoadedModel, template: Any, here: Talk, tmp_path: Path
) -> Iterator[Callable[[Any], tuple[Talk, ScriptedServer]]]:
    """Through a server that says what the model here says to exactly the same ids, and to others nothing."""
    opened: list[Any] = []

    def through(dialect: Any) -> tuple[Talk, ScriptedServer]:
        kept_back_tokens = 6 if isinstance(dialect, SglangScript) else 0
        server = ScriptedServer(dialect, loaded.tokenizer, context_tokens=CONTEXT_TOKENS + kept_back_tokens)
        opened.append(server)
        server.answer = lambda ledger: rest_of_answer(here, ledger) or [server.end_id]
        tokenizer: Any = loaded.tokenizer
        texts = RemoteTexts(tokenizer, "Tiny", frozenset(), (), SAMPLING, loaded.tokenizer_fingerprint)
        engine: Any = connected(server, texts=texts)
        harness = SessionHarness(tmp_path, engine, template, budget_bytes=1)
        opened.append(harness)
        return talk(harness, SAMPLING, template.takes_tools), server

    yield through
    for one in reversed(opened):
        one.close()


def dialects() -> dict[str, Any]:
    saving = LlamaCppScript()
    saving.saves_slots = True
    return {"llama.cpp": LlamaCppScript(), SLOTS: saving, "vLLM": VllmScript(), "SGLang": SglangScript()}


@pytest.mark.parametrize("name", dialects())
def test_every_ledger_is_the_same(
    name: str, here: Talk, elsewhere: Callable[[Any], tuple[Talk, ScriptedServer]]
) -> None:
    found, server = elsewhere(dialects()[name])
    assert len(found.ledgers) >= 20
    assert found.ledgers == here.ledgers
    assert found.answers == here.answers
    assert found.refused == here.refused != ""
    prompts = [tuple(body.get("prompt") or body["input_ids"]) for body in server.asked[1:]]
    if name not in ("llama.cpp", SLOTS):
        assert prompts == here.sent, "what the server got, in this order"
        return
    left = iter(prompts)  # among them what continues an answer of which the server left ids out
    assert all(sent in left for sent in here.sent)
    assert all(rest_of_answer(here, prompt) for prompt in prompts)
