"""Idle work in the engine: it fills a KV while no request waits, and ends the moment one does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.events import FinishReason, PrefillProgress
from model_runtime.interface.protocol import GenerationRequest, ReadRequest
from model_runtime.interface.sampling_params import SamplingParams
from tests.model_runtime.harness import GREEDY, TINY, Answer, WatchedEngine, loaded_tiny
from tests.polling import until

CONFIG = EngineConfig(prefill_chunk_tokens=64, idle_chunk_tokens=16)
TEXT = [(7 * i + 3) % 90 + 3 for i in range(120)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["llama"](tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def watched(model_dir: Path) -> Iterator[WatchedEngine]:
    engine = WatchedEngine(loaded_tiny(model_dir), CONFIG)
    yield engine
    engine.close()


def read(watched: WatchedEngine, kv: object, ids: Sequence[int]) -> Answer:
    answer = Answer(tuple(ids))
    answer.abort = watched.engine.read(ReadRequest(tuple(ids), kv), answer.heard).abort  # type: ignore[arg-type]
    return answer


def generate_idly(watched: WatchedEngine, kv: object, ids: Sequence[int], tokens: int) -> Answer:
    answer = Answer(tuple(ids))
    sampling = SamplingParams(temperature=0, max_new_tokens=tokens)
    request = GenerationRequest(tuple(ids), kv, sampling, is_idle=True)  # type: ignore[arg-type]
    answer.abort = watched.engine.submit(request, answer.heard).abort
    return answer


class Gate:
    """Holds the engine inside its next forwards, and asks it between two of their layers whether it goes on."""

    def __init__(self, watched: WatchedEngine) -> None:
        self.inside, self.open = threading.Event(), threading.Event()
        self.layers_asked: list[int] = []  # a number for every forward
        self.is_wanted: Callable[[], bool] = lambda: False  # whether the engine wants the forward inside to end
        self._run = watched.engine.runtime.forward.run
        watched.engine.runtime.forward.run = self._held  # type: ignore[method-assign]

    def _held(self, feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        self.is_wanted = abort_if
        self.inside.set()
        assert self.open.wait(10)

        self.layers_asked.append(0)

        def counted() -> bool:
            self.layers_asked[-1] += 1
            return abort_if()

        return self._run(feeds, counted)


def test_what_was_read_ahead_is_not_read_again_and_gives_the_same_answer(watched: WatchedEngine) -> None:
    cold = watched.submit(watched.engine.new_kv(), TEXT)
    cold.wait()
    kv, before = watched.engine.new_kv(), watched.fed
    ahead = read(watched, kv, TEXT[:100])
    finished = ahead.wait()
    assert (finished.reason, finished.fed_tokens, finished.reused_tokens) == (FinishReason.READ, 100, 0)
    assert (finished.sampled_tokens, finished.ttft_s) == (0, None)
    assert watched.fed - before == kv.length_tokens == 100
    progress = [e.fed_tokens for e in ahead.events if isinstance(e, PrefillProgress)]
    assert progress == [16, 32, 48, 64, 80, 96, 100]
    answer = watched.submit(kv, TEXT)
    assert (answer.wait().fed_tokens, answer.wait().reused_tokens) == (20, 100)
    assert answer.token_ids == cold.token_ids


def test_reading_something_else_crops_first_and_an_empty_rest_reads_nothing(watched: WatchedEngine) -> None:
    kv = watched.engine.new_kv()
    read(watched, kv, TEXT[:60]).wait()
    changed = [*TEXT[:50], 1, 2, 3]
    finished = read(watched, kv, changed).wait()
    assert (finished.fed_tokens, finished.reused_tokens, kv.token_ids) == (3, 50, changed)
    finished = read(watched, kv, TEXT[:40]).wait()
    assert (finished.reason, finished.fed_tokens, kv.length_tokens) == (FinishReason.READ, 0, 40)


@pytest.mark.parametrize("same_kv", [False, True])
def test_a_request_ends_idle_work_between_two_layers(watched: WatchedEngine, same_kv: bool) -> None:
    kv = watched.engine.new_kv()
    gate = Gate(watched)
    ahead = read(watched, kv, TEXT)
    assert gate.inside.wait(10)
    answer = watched.submit(watched.engine.new_kv() if not same_kv else kv, TEXT[:30])
    gate.open.set()
    assert ahead.wait().reason is FinishReason.PREEMPTED
    assert gate.layers_asked[0] == 1
    assert kv.length_tokens == ahead.wait().fed_tokens == 0 or same_kv
    assert answer.wait().reason is FinishReason.LENGTH


def test_what_was_read_before_the_request_came_stays(watched: WatchedEngine) -> None:
    kv = watched.engine.new_kv()
    others: list[Answer] = []

    def listen(event: object) -> None:
        ahead.heard(event)  # type: ignore[arg-type]
        if isinstance(event, PrefillProgress) and event.fed_tokens == 48:
            others.append(watched.submit(watched.engine.new_kv(), TEXT[:5]))

    ahead = Answer(tuple(TEXT))
    watched.engine.read(ReadRequest(tuple(TEXT), kv), listen)
    finished = ahead.wait()
    assert (finished.reason, finished.fed_tokens, kv.length_tokens) == (FinishReason.PREEMPTED, 48, 48)
    others[0].wait()
    assert (finished := read(watched, kv, TEXT).wait()).reused_tokens == 48
    assert finished.reason is FinishReason.READ


def test_idle_work_does_not_start_beside_an_answer(watched: WatchedEngine) -> None:
    kv = watched.engine.new_kv()
    read(watched, kv, TEXT[:20]).wait()
    started, gate = threading.Event(), threading.Event()

    def listen(event: object) -> None:
        running.heard(event)  # type: ignore[arg-type]
        started.set()
        assert gate.wait(10)

    running = Answer(tuple(TEXT))
    watched.engine.submit(GenerationRequest(tuple(TEXT), watched.engine.new_kv(), GREEDY), listen)
    assert started.wait(10)
    ahead, title = read(watched, kv, [1, 2, 3]), generate_idly(watched, watched.engine.new_kv(), TEXT[:9], 5)
    gate.set()
    assert (ahead.wait().reason, title.wait().reason) == (FinishReason.PREEMPTED, FinishReason.PREEMPTED)
    assert kv.length_tokens == 20  # not even cropped
    running.wait()


def test_a_call_between_steps_does_not_wait_for_idle_work(watched: WatchedEngine) -> None:
    gate = Gate(watched)
    kv, other = watched.engine.new_kv(), watched.engine.new_kv()
    ahead = read(watched, kv, TEXT)
    assert gate.inside.wait(10)
    released = threading.Thread(target=lambda: watched.engine.release(other))
    released.start()
    until(lambda: gate.is_wanted())  # the call is waiting
    gate.open.set()
    released.join(10)
    assert ahead.wait().reason is FinishReason.READ  # it goes on afterwards
    assert kv.token_ids == TEXT


def test_a_throw_away_answer_costs_its_suffix_and_is_cropped_by_the_next_turn(watched: WatchedEngine) -> None:
    kv, before = watched.engine.new_kv(), watched.fed
    first = watched.submit(kv, TEXT[:50])
    first.wait()
    ledger = [*TEXT[:50], *first.token_ids]
    title = generate_idly(watched, kv, [*ledger, 7, 8, 9], 4)
    assert (title.wait().fed_tokens, title.wait().reused_tokens) == (4, len(ledger) - 1)
    assert watched.fed - before == 50 + 11 + 4 + 3
    second = watched.submit(kv, [*ledger, 5, 6])
    assert second.wait().reused_tokens == len(ledger)  # the title's turn read the pending token too
    cold = watched.submit(watched.engine.new_kv(), [*ledger, 5, 6])
    cold.wait()
    assert second.token_ids == cold.token_ids


def test_a_request_ends_an_idle_answer(watched: WatchedEngine) -> None:
    gate = Gate(watched)
    title = generate_idly(watched, watched.engine.new_kv(), TEXT, 300)
    assert gate.inside.wait(10)
    answer = watched.submit(watched.engine.new_kv(), TEXT[:5])
    gate.open.set()
    assert title.wait().reason is FinishReason.PREEMPTED
    answer.wait()


def test_idle_work_always_learns_of_its_end(watched: WatchedEngine) -> None:
    too_long = read(watched, watched.engine.new_kv(), [5] * 600)
    assert too_long.wait().reason is FinishReason.FAILED
    gate = Gate(watched)
    aborted = read(watched, watched.engine.new_kv(), TEXT)
    assert gate.inside.wait(10)
    aborted.abort()
    gate.open.set()
    assert aborted.wait().reason is FinishReason.ABORTED

    def broken(feeds: Sequence[Feed], abort_if: object = None) -> torch.Tensor:
        raise RuntimeError("broken")

    watched.engine.runtime.forward.run = broken  # type: ignore[method-assign]
    failed = read(watched, watched.engine.new_kv(), TEXT)
    assert failed.wait().reason is FinishReason.FAILED
    watched.engine.close()
    assert read(watched, watched.engine.new_kv(), TEXT).wait().reason is FinishReason.FAILED
