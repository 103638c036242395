"""Rows that were copied from another KV answer as if they had been read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model_runtime.interface.errors import EngineClosed
from tests.model_runtime.harness import TINY, WatchedEngine, full_read, loaded_tiny

TEXT = [(7 * i + 3) % 90 + 3 for i in range(150)]


@pytest.fixture(params=["llama", "gemma3", "falcon-alibi", "mpt"])
def model_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return TINY[request.param](tmp_path / request.param)


@pytest.fixture
def watched(model_dir: Path) -> Iterator[WatchedEngine]:
    engine = WatchedEngine(loaded_tiny(model_dir))
    yield engine
    engine.close()


def test_a_copied_beginning_answers_like_a_read_one(watched: WatchedEngine, model_dir: Path) -> None:
    source, target = watched.engine.new_kv(), watched.engine.new_kv()
    watched.submit(source, [*TEXT[:120], 1, 2, 3]).wait()
    ledger = [*TEXT[:120], 9, 8, 7, 6]
    before = watched.fed
    assert watched.engine.copy_beginning(source, target, ledger[:-1], 64) == (0, 120)
    assert watched.fed == before
    assert (target.token_ids, source.length_tokens) == (TEXT[:120], 134)
    answer = watched.submit(target, ledger)
    assert (answer.wait().fed_tokens, answer.wait().reused_tokens) == (4, 120)
    expected = full_read(loaded_tiny(model_dir).model, ledger)[-1]  # its own attention, nothing cached
    assert torch.allclose(watched.logits[tuple(ledger)], expected, atol=1e-4)


def test_only_what_is_missing_is_copied_and_only_when_it_is_worth_it(watched: WatchedEngine) -> None:
    source, target = watched.engine.new_kv(), watched.engine.new_kv()
    watched.submit(source, TEXT).wait()
    watched.submit(target, [*TEXT[:70], 1, 2]).wait()
    held = list(target.token_ids)
    assert watched.engine.copy_beginning(source, target, TEXT, 81) == (0, 0)
    assert target.token_ids == held  # not even cropped
    assert watched.engine.copy_beginning(source, target, TEXT, 80) == (70, 150)
    assert watched.engine.copy_beginning(source, source, TEXT, 1) == (0, 0)
    assert target.allocated_bytes <= watched.engine.kv_bytes(len(TEXT))
    watched.engine.release(source)
    assert watched.engine.copy_beginning(source, watched.engine.new_kv(), TEXT, 1) == (0, 0)


def test_a_closed_engine_copies_nothing(watched: WatchedEngine) -> None:
    source, target = watched.engine.new_kv(), watched.engine.new_kv()
    watched.engine.close()
    with pytest.raises(EngineClosed):
        watched.engine.copy_beginning(source, target, TEXT, 1)
