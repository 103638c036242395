"""Turns on a real SGLang with the embedded model's weights in float32, held against the model as it runs here.

SGLang has no build for CPUs on PyPI. What runs it is told here: KEEPWARM_SGLANG is a server's address,
KEEPWARM_SGLANG_MODEL the directory that it serves, with a context of 768 tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_runtime.interface.config import RemoteConfig
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from model_runtime.remote.engine import RemoteEngine
from model_runtime.remote.texts import RemoteTexts, load_texts
from tests.model_runtime.remote import remote_harness
from tests.model_runtime.remote.remote_harness import ask
from tests.sessions.remote.float32_checks import (
    first_turn,
    same_ids_and_logprobs,
    stops_limits_and_aborts,
    twenty_turns,
)

ADDRESS = os.environ.get("KEEPWARM_SGLANG", "")
MODEL = os.environ.get("KEEPWARM_SGLANG_MODEL", "")
USABLE_TOKENS = 768 - 6
pytestmark = [
    pytest.mark.remote,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not ADDRESS, reason="KEEPWARM_SGLANG names no SGLang server of the embedded model in float32"),
]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_harness, "PATIENCE_S", 300.0)


@pytest.fixture
def texts() -> RemoteTexts:
    return load_texts(RemoteConfig(("http://x",), tokenizer=MODEL), lambda sentence: None)


@pytest.fixture
def engine(texts: RemoteTexts) -> Iterator[RemoteEngine]:
    opened = RemoteEngine(RemoteConfig((ADDRESS,), model=MODEL, tokenizer=MODEL), texts, print)
    yield opened
    opened.close()


def test_twenty_turns(
    engine: RemoteEngine, texts: RemoteTexts, tmp_path: Path, loaded_embedded_float32: LoadedModel
) -> None:
    assert engine.info.context_limit_tokens == USABLE_TOKENS
    twenty_turns(engine, texts, tmp_path, loaded_embedded_float32)


def test_settings(engine: RemoteEngine, texts: RemoteTexts, loaded_embedded_float32: LoadedModel) -> None:
    plain = SamplingParams(temperature=0.0, max_new_tokens=16, top_logprobs=3)
    same_ids_and_logprobs(engine, first_turn(texts), plain, loaded_embedded_float32)
    sampled = SamplingParams(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.02, presence_penalty=0.2, frequency_penalty=0.1,
        logit_bias=((504, -3.0),), min_new_tokens=12, max_new_tokens=16,
    )  # fmt: skip
    assert engine.sampling_refusal(sampled) == ""
    assert len(ask(engine, first_turn(texts), sampled).ids) >= 12


def test_stops_limits_and_aborts(engine: RemoteEngine, texts: RemoteTexts) -> None:
    stops_limits_and_aborts(engine, first_turn(texts))


def test_the_whole_context(engine: RemoteEngine, texts: RemoteTexts) -> None:
    ledger = (*first_turn(texts), *[504] * 1000)
    for room in (1, 5):
        end = ask(engine, ledger[: USABLE_TOKENS - room], SamplingParams(temperature=0.0, ignore_eos=True)).end
        assert (end.reason, end.sampled_tokens) == (FinishReason.CONTEXT, room), end.error
