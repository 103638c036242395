"""Families whose attention does more than Llama's: cached equals uncached, whatever happened to the KV on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model_runtime.interface.config import EngineConfig
from model_runtime.interface.segments import identify
from model_runtime.loading.loaded import LoadedModel
from tests.model_runtime.engine.test_exactness import assert_equals_full_read, some_ids
from tests.model_runtime.harness import GREEDY, WatchedEngine
from tests.model_runtime.tiny_families import FAMILIES, LONGROPE_TOKENS, tiny_family
from tests.model_runtime.tiny_models import tiny_tokenizer

Pair = tuple[WatchedEngine, torch.nn.Module]


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """An engine and an untouched copy of its model."""
    model = tiny_family(request.param)
    loaded = LoadedModel(
        model=model,
        tokenizer=tiny_tokenizer(),
        name=request.param,
        quantization="none",
        stop_token_ids=frozenset(),
        default_sampling=GREEDY,
        kv_dtype=torch.float32,
        weights_bytes=1,
        fingerprint=request.param,
        tokenizer_fingerprint="tiny",
    )
    watched = WatchedEngine(loaded, EngineConfig(prefill_chunk_tokens=32, prompt_lookup="on"), LONGROPE_TOKENS)
    yield watched, tiny_family(request.param)
    watched.close()


def test_a_family_answers_like_a_full_read_through_everything(pair: Pair, tmp_path: Path) -> None:
    """Two conversations share their forwards for three turns past all boundaries; then one is cropped, saved, evicted,
    restored and verified."""
    watched, reference = pair
    engine, rng = watched.engine, random.Random(9)
    kvs = [engine.new_kv(), engine.new_kv()]
    ledgers = [some_ids(rng, 90), some_ids(rng, 17)]
    for _ in range(3):
        answers = [watched.submit(kv, ledger) for kv, ledger in zip(kvs, ledgers, strict=True)]
        for answer, kv in zip(answers, kvs, strict=True):
            finished = answer.wait()
            assert finished.error is None
            assert_equals_full_read(watched, reference, answer)
            assert kv.length_tokens == len(answer.ledger) + finished.sampled_tokens - 1
        ledgers = [[*a.ledger, *a.token_ids, *some_ids(rng, 6)] for a in answers]

    cropped = watched.submit(kvs[0], [*ledgers[0][:75], *some_ids(rng, 9)])
    assert cropped.wait().reused_tokens == 75
    assert_equals_full_read(watched, reference, cropped)

    held = tuple(kvs[0].token_ids)
    head = identify(None, held[:50], "f")
    tail = identify(head, held[50:], "f")
    for identity in (head, tail):
        engine.save(engine.stage(kvs[0], identity), tmp_path / identity.key)
    engine.release(kvs[0])
    back = engine.new_kv()
    engine.restore(back, [engine.load(identity, tmp_path / identity.key) for identity in (head, tail)])
    ledger = [*cropped.ledger, *cropped.token_ids, *some_ids(rng, 7)]
    restored = watched.submit(back, ledger)
    assert restored.wait().fed_tokens == 8
    assert_equals_full_read(watched, reference, restored)

    found = engine.verify(engine.new_kv(), [*restored.ledger, *restored.token_ids], [back], lambda: False)
    assert found is not None
    assert found.agrees
