"""Few rows over long keys, cut into pieces: every key is seen once, and nothing that is computed changes."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from model_runtime.forward.arena import pieces
from model_runtime.forward.arena.pieces import Pieces, cut, window_for
from model_runtime.forward.arena.varlen_choice import agrees_in_pieces
from model_runtime.forward.arena.varlen_reference import REFERENCE, reference_with_lse
from model_runtime.forward.gpu import arena_forward
from tests.model_runtime.engine.test_exactness import assert_equals_full_read, some_ids
from tests.model_runtime.forward.gpu.test_arena_engine import forward_of, over_arena
from tests.model_runtime.harness import TINY, loaded_tiny

CPU = torch.device("cpu")


def keys_of(found: Pieces, row: int, rows: int) -> list[int]:
    """Which rows of the arena a query row, of so many, sees piece by piece."""
    most = len(found.places) // rows
    spans = list(zip(pairwise(found.begins_q), found.begins_k, found.used_k, strict=False))
    seen: list[int] = []
    for place in found.places[row * most : (row + 1) * most]:
        if place < 0:
            continue
        assert found.rows[place] == row
        (first, last), begin, keys = next(span for span in spans if span[0][0] <= place < span[0][1])
        stands_at = keys - (last - first) + place - first
        seen += [begin + key for key in range(max(0, stands_at - found.window + 1), stands_at + 1)]
    return seen


@pytest.mark.parametrize("seed", range(20))
def test_every_row_sees_each_of_its_keys_once(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randint(1, 40) for _ in range(rng.randint(1, 4))]
    used = [rng.randint(count, 900) for count in tokens]
    begins_q = [sum(tokens[:n]) for n in range(len(tokens) + 1)]
    begins_k = [1000 * n + 7 for n in range(len(tokens))]
    window = rng.choice([50, 64, 128, 500])

    found = cut(begins_q, [*begins_k, 0], used, window)

    for sequence, (first, last) in enumerate(pairwise(begins_q)):
        for row in range(first, last):
            position = used[sequence] - tokens[sequence] + row - first
            assert sorted(keys_of(found, row, begins_q[-1])) == [
                begins_k[sequence] + key for key in range(position + 1)
            ]
    assert max(found.used_k) == found.max_k


def test_pieces_are_asked_for_only_where_processors_would_idle() -> None:
    assert window_for([16416], heads=32, processors=132) == 2048
    assert window_for([16416] * 5, heads=32, processors=132) is None  # busy anyhow
    assert window_for([pieces.SHORTEST_TOKENS], heads=32, processors=132) is None
    assert window_for([16416], heads=32, processors=0) is None


def test_a_kernel_whose_sums_are_wrong_does_not_agree_in_pieces() -> None:
    def without_sums(*arguments: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output, lse = reference_with_lse(*arguments, **named)
        return output, torch.zeros_like(lse)

    assert agrees_in_pieces(REFERENCE, CPU, torch.float32, 6, 2, 16)
    assert not agrees_in_pieces(replace(REFERENCE, call_with_lse=without_sums), CPU, torch.float32, 6, 2, 16)
    assert not agrees_in_pieces(replace(REFERENCE, call_with_lse=None), CPU, torch.float32, 6, 2, 16)


@pytest.mark.parametrize("name", ["llama", "gptbigcode"])
def test_short_turns_in_pieces_equal_a_full_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through our own forward of few rows, and through a model's own layers."""
    monkeypatch.setattr(pieces, "SHORTEST_TOKENS", 64)
    windows: list[int | None] = []

    def watched_window(*arguments: Any) -> int | None:
        windows.append(window_for(*arguments))
        return windows[-1]

    monkeypatch.setattr(arena_forward, "window_for", watched_window)
    directory = TINY[name](tmp_path / name)
    watched, reference = over_arena(directory), loaded_tiny(directory).model
    forward_of(watched).processors = 10_000
    randomness = random.Random(8)
    ledgers = [some_ids(randomness, 150), some_ids(randomness, 90)]
    kvs = [watched.engine.new_kv() for _ in ledgers]
    for _ in range(3):
        answers = [watched.submit(kv, ledger) for kv, ledger in zip(kvs, ledgers, strict=True)]
        for answer in answers:
            assert answer.wait().error is None
            assert_equals_full_read(watched, reference, answer)
        ledgers = [[*a.ledger, *a.token_ids, *some_ids(randomness, 9)] for a in answers]
    assert 64 in windows
    watched.close()
