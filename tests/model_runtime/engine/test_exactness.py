"""Cached equals uncached in reference mode: float32, whatever happened to the KV on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.segments import identify
from tests.model_runtime.harness import TINY, Answer, WatchedEngine, full_read, loaded_tiny
from tests.polling import until

LOGIT_TOLERANCE = 1e-4


@pytest.fixture(params=sorted(TINY))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[WatchedEngine, torch.nn.Module]]:
    """An engine and an untouched copy of its model with transformers' own attention."""
    directory = TINY[request.param](tmp_path / request.param)
    reference = loaded_tiny(directory).model
    watched = WatchedEngine(loaded_tiny(directory), EngineConfig(prefill_chunk_tokens=32, prompt_lookup="on"))
    yield watched, reference
    watched.close()


def assert_equals_full_read(watched: WatchedEngine, reference: torch.nn.Module, answer: Answer) -> None:
    """Every sampled token of the answer is the greedy one of a full read, and its logits agree."""
    ledger = answer.ledger + answer.token_ids
    expected = full_read(reference, ledger)
    for place, token_id in enumerate(answer.token_ids, start=len(answer.ledger)):
        assert token_id == int(expected[place - 1].argmax())
        torch.testing.assert_close(watched.logits[ledger[:place]], expected[place - 1], atol=LOGIT_TOLERANCE, rtol=0)


def some_ids(randomness: random.Random, tokens: int) -> list[int]:
    return [randomness.randrange(3, 512) for _ in range(tokens)]


def test_ten_turns_equal_a_full_read_and_feed_only_their_delta(pair: tuple[WatchedEngine, torch.nn.Module]) -> None:
    watched, reference = pair
    randomness = random.Random(1)
    kv = watched.engine.new_kv()
    ledger = some_ids(randomness, 70)
    for turn in range(10):
        delta = len(ledger) - kv.length_tokens
        fed_before = watched.fed
        answer = watched.submit(kv, ledger)
        finished = answer.wait()
        assert_equals_full_read(watched, reference, answer)
        assert finished.fed_tokens == delta
        # Every sampled token but the last one passes the model's input once more, and so does every wrong guess.
        wrong = finished.drafted_tokens - finished.accepted_tokens
        assert watched.fed - fed_before == delta + finished.sampled_tokens - 1 + wrong
        assert kv.length_tokens == len(ledger) + finished.sampled_tokens - 1
        ledger += [*answer.token_ids, *some_ids(randomness, 5 + turn)]


def test_interleaved_conversations_do_not_touch_each_other(pair: tuple[WatchedEngine, torch.nn.Module]) -> None:
    watched, reference = pair
    randomness = random.Random(2)
    kvs = [watched.engine.new_kv() for _ in range(5)]
    ledgers = [some_ids(randomness, 20 + 23 * n) for n in range(5)]
    for _ in range(3):
        answers = [watched.submit(kv, ledger) for kv, ledger in zip(kvs, ledgers, strict=True)]
        for answer in answers:
            answer.wait()
            assert_equals_full_read(watched, reference, answer)
        ledgers = [[*a.ledger, *a.token_ids, *some_ids(randomness, 9)] for a in answers]


def test_crop_and_regenerate_and_another_branch(pair: tuple[WatchedEngine, torch.nn.Module]) -> None:
    watched, reference = pair
    randomness = random.Random(3)
    kv = watched.engine.new_kv()
    ledger = some_ids(randomness, 60)
    first = watched.submit(kv, ledger)
    first.wait()

    again = watched.submit(kv, ledger)
    assert again.wait().fed_tokens == 1  # only the last prompt token, for its logits
    assert again.token_ids == first.token_ids

    other = watched.submit(kv, [*ledger[:41], *some_ids(randomness, 30)])
    finished = other.wait()
    assert finished.reused_tokens >= 41 - 1
    assert_equals_full_read(watched, reference, other)


def has_events(answer: Answer, count: int) -> bool:
    return len(answer.events) >= count


def test_a_stopped_answer_leaves_a_correct_kv(pair: tuple[WatchedEngine, torch.nn.Module]) -> None:
    watched, reference = pair
    randomness = random.Random(4)
    kv = watched.engine.new_kv()
    ledger = some_ids(randomness, 100)
    for _ in range(6):
        stopped = watched.submit(kv, ledger)
        wanted_events = randomness.randrange(1, 9)
        until(partial(has_events, stopped, wanted_events), 60.0, 0.0002)
        stopped.abort()
        stopped.wait()
        assert kv.token_ids == [*stopped.ledger, *stopped.token_ids][: kv.length_tokens]
        ledger = [*stopped.ledger, *stopped.token_ids, *some_ids(randomness, 6)]
        answer = watched.submit(kv, ledger)
        answer.wait()
        assert_equals_full_read(watched, reference, answer)
        ledger += [*answer.token_ids, *some_ids(randomness, 6)]


def test_a_released_kv_is_read_again_to_the_same_answer(pair: tuple[WatchedEngine, torch.nn.Module]) -> None:
    watched, reference = pair
    kv = watched.engine.new_kv()
    ledger = some_ids(random.Random(5), 80)
    first = watched.submit(kv, ledger)
    first.wait()
    watched.engine.release(kv)
    assert kv.allocated_bytes == 0
    again = watched.submit(kv, ledger)
    assert again.wait().fed_tokens == len(ledger)
    assert again.token_ids == first.token_ids
    assert_equals_full_read(watched, reference, again)


def test_another_conversations_kv_is_never_used(pair: tuple[WatchedEngine, torch.nn.Module]) -> None:
    watched, reference = pair
    randomness = random.Random(6)
    kv = watched.engine.new_kv()
    watched.submit(kv, some_ids(randomness, 50)).wait()
    stranger = watched.submit(kv, some_ids(randomness, 45))
    assert stranger.wait().reused_tokens == 0
    assert_equals_full_read(watched, reference, stranger)


def test_a_kv_that_went_through_files_answers_as_before(
    pair: tuple[WatchedEngine, torch.nn.Module], tmp_path: Path
) -> None:
    watched, reference = pair
    engine = watched.engine
    randomness = random.Random(7)
    kv = engine.new_kv()
    ledger = some_ids(randomness, 90)
    first = watched.submit(kv, ledger)
    first.wait()
    held = tuple(kv.token_ids)
    head = identify(None, held[:50], "f")
    for identity in (head, identify(head, held[50:], "f")):
        engine.save(engine.stage(kv, identity), tmp_path / identity.key)
    engine.release(kv)

    ledger = [*first.ledger, *first.token_ids, *some_ids(randomness, 7)]
    running = watched.submit(engine.new_kv(), some_ids(randomness, 200))  # a restore goes on beside other answers
    back = engine.new_kv()
    engine.restore(back, [engine.load(i, tmp_path / i.key) for i in (head, identify(head, held[50:], "f"))])
    answer = watched.submit(back, ledger)
    assert answer.wait().fed_tokens == 8
    assert_equals_full_read(watched, reference, answer)
    running.wait()
    assert_equals_full_read(watched, reference, running)


def test_a_feed_gets_as_many_rows_of_logits_as_it_asks_for(pair: tuple[WatchedEngine, torch.nn.Module]) -> None:
    """Three feeds in one forward: a prompt's middle (no rows), a prompt's end (one), a draft to be checked (four)."""
    watched, reference = pair
    randomness = random.Random(8)
    middle, end, draft = (some_ids(randomness, tokens) for tokens in (9, 17, 30))
    slabs = [watched.engine.new_kv() for _ in range(3)]
    watched.engine.close()  # its thread is gone: the forward may be called from here
    forward = watched.engine.runtime.forward
    assert forward.run([Feed(slabs[2], draft[:25], 0)]).shape[0] == 0
    found = forward.run([Feed(slabs[0], middle, 0), Feed(slabs[1], end, 1), Feed(slabs[2], draft[25:], 4)])
    expected = torch.cat([full_read(reference, end)[-1:], full_read(reference, draft)[-4:]])
    torch.testing.assert_close(found, expected, atol=LOGIT_TOLERANCE, rtol=0)
