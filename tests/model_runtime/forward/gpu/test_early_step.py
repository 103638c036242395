"""Steps that are started before the host knows their tokens: the host asks for them, or their results are ignored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from model_runtime.forward.gpu.arena_forward import ArenaForward
from model_runtime.forward.gpu.cuda_graphs import RecordedSteps
from model_runtime.forward.gpu.early_step import EarlyStep
from model_runtime.forward.gpu.graph_shapes import DecodeShape, StepShape
from model_runtime.forward.picked_ids import PickedIds
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from tests.model_runtime.engine.test_exactness import assert_equals_full_read, some_ids
from tests.model_runtime.forward.gpu.test_arena_engine import forward_of, over_arena
from tests.model_runtime.harness import TINY, Answer, WatchedEngine, loaded_tiny
from tests.polling import until


class Steps:
    """How many decode steps were computed, how many of them ahead, and how often such a one was what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed = self.ahead = self.found = 0
        run, run_ahead, logits_for = RecordedSteps.run, ArenaForward.run_ahead, EarlyStep.logits_for

        def counted_run(own: RecordedSteps, shape: StepShape, *arguments: object) -> torch.Tensor:
            self.computed += isinstance(shape, DecodeShape)
            return run(own, shape, *arguments)  # type: ignore[arg-type]

        def counted_run_ahead(own: ArenaForward, *arguments: object) -> bool:
            is_ahead = run_ahead(own, *arguments)  # type: ignore[arg-type]
            self.ahead += is_ahead
            return is_ahead

        def counted_logits_for(own: EarlyStep, *arguments: object) -> torch.Tensor | None:
            logits = logits_for(own, *arguments)  # type: ignore[arg-type]
            self.found += logits is not None
            return logits

        monkeypatch.setattr(RecordedSteps, "run", counted_run)
        monkeypatch.setattr(ArenaForward, "run_ahead", counted_run_ahead)
        monkeypatch.setattr(EarlyStep, "logits_for", counted_logits_for)

    def forget(self) -> None:
        self.computed = self.ahead = self.found = 0


@pytest.fixture
def reference(tmp_path: Path) -> PreTrainedModel:
    return loaded_tiny(TINY["qwen3"](tmp_path / "qwen3")).model


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture
def watched(tmp_path: Path, reference: PreTrainedModel, steps: Steps) -> Iterator[WatchedEngine]:
    engine = over_arena(tmp_path / "qwen3")
    engine.submit(engine.engine.new_kv(), [3] * 9).wait()  # what decodes alone is recorded
    steps.forget()
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0, max_new_tokens=20),
        SamplingParams(temperature=0.9, top_k=40, top_p=0.9, seed=4, max_new_tokens=20),
        SamplingParams(temperature=0.9, repetition_penalty=1.3, presence_penalty=0.4, seed=4, max_new_tokens=20),
    ],
    ids=["greedy", "sampled", "penalised"],
)
def test_no_step_is_computed_twice_or_in_vain(
    watched: WatchedEngine, reference: PreTrainedModel, steps: Steps, sampling: SamplingParams
) -> None:
    answer = watched.submit(watched.engine.new_kv(), some_ids(random.Random(1), 30), sampling)
    assert answer.wait().sampled_tokens == 20
    assert steps.found == steps.ahead == 18  # the first token is the prompt's, the step behind it is not known yet
    assert steps.computed == 19
    for ids, logits in watched.logits.items():
        if ids[: len(answer.ledger)] == answer.ledger:
            expected = reference(torch.tensor([ids]), use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_a_seed_gives_the_same_answer_with_and_without(watched: WatchedEngine, steps: Steps) -> None:
    sampling = SamplingParams(temperature=1.0, top_p=0.95, repetition_penalty=1.2, seed=11, max_new_tokens=25)
    ledger = some_ids(random.Random(2), 21)
    ahead = watched.submit(watched.engine.new_kv(), ledger, sampling)
    ahead.wait()
    assert steps.found
    object.__setattr__(watched.engine.runtime, "run_ahead", None)
    plain = watched.submit(watched.engine.new_kv(), ledger, sampling)
    plain.wait()
    assert ahead.token_ids == plain.token_ids


def test_when_one_answer_ends_the_others_go_on_with_what_runs(
    watched: WatchedEngine, reference: PreTrainedModel, steps: Steps
) -> None:
    def together() -> None:
        lengths = (8, 30, 19)
        kvs = [watched.engine.new_kv() for _ in lengths]
        answers = [
            watched.submit(kv, some_ids(random.Random(n), 12), SamplingParams(temperature=0, max_new_tokens=n))
            for kv, n in zip(kvs, lengths, strict=True)
        ]
        for answer in answers:
            assert answer.wait().reason is FinishReason.LENGTH
            assert_equals_full_read(watched, reference, answer)
        for kv in kvs:
            watched.engine.release(kv)

    together()  # the batch sizes are recorded
    steps.forget()
    together()
    assert steps.found
    assert steps.computed <= 29 + 2  # one of them when the second and the third have come


def has_said(answer: Answer, count: int) -> bool:
    return len(answer.token_ids) >= count


def test_a_stopped_answers_step_is_not_taken_for_another_ones(
    watched: WatchedEngine, reference: PreTrainedModel
) -> None:
    """The same conversation goes on with other words of the same length: only the last id is to be fed, at the place
    where a step ahead may have written another."""
    kv, ledger = watched.engine.new_kv(), some_ids(random.Random(7), 40)
    for number in range(6):
        answer = watched.submit(kv, ledger, SamplingParams(temperature=0, max_new_tokens=200))
        until(partial(has_said, answer, 5 + number), 60.0, 0.0005)
        answer.abort()
        answer.wait()
        held = list(kv.token_ids)
        again = watched.submit(kv, [*held[:-1], (held[-1] + 1) % 500], SamplingParams(temperature=0, max_new_tokens=3))
        again.wait()
        assert_equals_full_read(watched, reference, again)
        same = watched.submit(kv, [*held, int(answer.token_ids[-1])], SamplingParams(temperature=0, max_new_tokens=3))
        same.wait()
        assert_equals_full_read(watched, reference, same)


def test_rows_that_were_forgotten_and_came_back_are_others(watched: WatchedEngine) -> None:
    forward = forward_of(watched)
    kv = forward.arena.new_kv()
    kv.reserve(16)
    kv.appended([5, 6, 7])
    picks = PickedIds(torch.tensor([9]))
    ahead = EarlyStep([kv], picks, torch.zeros(1, 4))
    assert ahead.logits_for([(kv, 9)]) is not None
    assert ahead.logits_for([(kv, 8)]) is None
    kv.crop(2)
    kv.appended([8])
    assert ahead.logits_for([(kv, 9)]) is None
    kv.free()


def test_no_step_is_started_where_a_kv_has_no_row_left(watched: WatchedEngine, steps: Steps) -> None:
    forward = forward_of(watched)
    kv = forward.arena.new_kv()
    kv.reserve(64)
    kv.appended([5] * 63)
    assert forward.run_ahead([kv], PickedIds(torch.tensor([9])))
    kv.appended([9])
    assert kv.span_tokens == kv.length_tokens
    assert not forward.run_ahead([kv], PickedIds(torch.tensor([9])))
    kv.free()
