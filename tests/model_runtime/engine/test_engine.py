"""The engine's manners: limits, stops, failures, bytes, closing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import EngineConfig
from model_runtime.interface.events import Finished, FinishReason, PrefillProgress, TokenDelta
from model_runtime.interface.protocol import GenerationRequest
from model_runtime.interface.sampling_params import SamplingParams
from tests.model_runtime.harness import TINY, WatchedEngine, loaded_tiny
from tests.polling import until


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedEngine]:
    engine = WatchedEngine(loaded_tiny(TINY["llama"](tmp_path / "llama")), EngineConfig(prefill_chunk_tokens=32))
    yield engine
    engine.close()


def held_bytes(kv: object) -> int:
    storages = [t.untyped_storage() for t in (*kv.keys, *kv.values) if t.numel()]  # type: ignore[attr-defined]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_shown_bytes_are_the_bytes_of_the_storages_and_stay_within_the_promise(watched: WatchedEngine) -> None:
    kv = watched.engine.new_kv()
    assert kv.allocated_bytes == held_bytes(kv) == 0
    ledger = [5] * 200
    for sampled in (3, 100, 120):
        answer = watched.submit(kv, ledger, SamplingParams(temperature=0, max_new_tokens=sampled))
        answer.wait()
        assert kv.allocated_bytes == held_bytes(kv)
        assert kv.allocated_bytes <= watched.engine.kv_bytes(len(ledger) + sampled)
        ledger = [*answer.ledger, *answer.token_ids]


def test_the_promise_grows_with_the_tokens(watched: WatchedEngine) -> None:
    promises = [watched.engine.kv_bytes(n) for n in range(0, 5000, 7)]
    assert promises == sorted(promises)
    assert promises[0] == 0
    assert all(watched.engine.kv_bytes(n) >= n * watched.engine.info.kv_bytes_per_token for n in (1, 255, 256, 9999))


def test_progress_is_told_chunk_by_chunk(watched: WatchedEngine) -> None:
    answer = watched.submit(watched.engine.new_kv(), [7] * 100)
    answer.wait()
    progress = [(e.fed_tokens, e.total_tokens) for e in answer.events if isinstance(e, PrefillProgress)]
    assert progress == [(32, 100), (64, 100), (96, 100), (100, 100)]


def test_a_stop_during_prefill_ends_it_within_a_chunk(watched: WatchedEngine) -> None:
    reading = threading.Event()
    gate = threading.Event()
    run = watched.engine.runtime.forward.run

    def slow(feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        reading.set()
        assert gate.wait(10)
        return run(feeds, abort_if)

    watched.engine.runtime.forward.run = slow  # type: ignore[method-assign]
    kv = watched.engine.new_kv()
    answer = watched.submit(kv, [7] * 300)
    assert reading.wait(10)
    answer.abort()
    gate.set()
    finished = answer.wait()
    assert finished.reason is FinishReason.ABORTED
    assert finished.sampled_tokens == 0
    assert finished.ttft_s is None
    assert kv.length_tokens == 0  # the chunk under way was dropped between two layers


def test_a_short_message_is_answered_while_anothers_long_ones_are_read(watched: WatchedEngine) -> None:
    first_tokens: list[str] = []
    done = [threading.Event() for _ in range(4)]

    def ask(number: int, key: str, ledger: list[int]) -> None:
        def listen(event: object) -> None:
            if isinstance(event, TokenDelta) and key not in first_tokens:
                first_tokens.append(key)
            if isinstance(event, Finished):
                done[number].set()

        sampling = SamplingParams(temperature=0, max_new_tokens=2)
        request = GenerationRequest(tuple(ledger), watched.engine.new_kv(), sampling, fairness_key=key)
        watched.engine.submit(request, listen)

    for number in range(3):
        ask(number, "ada", [7] * 450)
    ask(3, "ben", [9] * 10)
    assert all(event.wait(30) for event in done)
    assert first_tokens == ["ben", "ada"]


def test_the_answer_ends_at_its_own_limit_and_at_the_contexts(watched: WatchedEngine) -> None:
    short = watched.submit(watched.engine.new_kv(), [5, 6], SamplingParams(temperature=0, max_new_tokens=1))
    assert (short.wait().reason, short.wait().sampled_tokens) == (FinishReason.LENGTH, 1)
    long = watched.submit(watched.engine.new_kv(), [5] * 505, SamplingParams(temperature=0, max_new_tokens=100))
    assert (long.wait().reason, long.wait().sampled_tokens) == (FinishReason.CONTEXT, 7)


def test_more_than_the_context_is_refused_with_numbers(watched: WatchedEngine) -> None:
    finished = watched.submit(watched.engine.new_kv(), [5] * 513).wait()
    assert finished.reason is FinishReason.FAILED
    assert "513" in str(finished.error)
    assert "512" in str(finished.error)


def test_a_stop_token_ends_the_answer_without_text(tmp_path: Path) -> None:
    directory = TINY["llama"](tmp_path / "llama")
    plain = WatchedEngine(loaded_tiny(directory))
    ids = plain.submit(plain.engine.new_kv(), [5] * 40).wait() and list(plain.logits)[-1][40:]
    plain.close()
    loaded = loaded_tiny(directory)
    stopping = WatchedEngine(type(loaded)(**{**_fields(loaded), "stop_token_ids": frozenset({ids[3]})}))
    answer = stopping.submit(stopping.engine.new_kv(), [5] * 40)
    finished = answer.wait()
    stopping.close()
    assert finished.reason is FinishReason.STOP
    assert answer.token_ids == ids[: ids.index(ids[3]) + 1]
    assert answer.events[-2].text == ""  # type: ignore[union-attr]


def _fields(loaded: object) -> dict[str, object]:
    return {name: getattr(loaded, name) for name in loaded.__dataclass_fields__}  # type: ignore[attr-defined]


def test_a_failing_forward_costs_only_its_own_request(watched: WatchedEngine) -> None:
    run = watched.engine.runtime.forward.run

    def fragile(feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        if any(feed.token_ids[0] == 13 for feed in feeds):
            raise RuntimeError("kernel exploded")
        return run(feeds, abort_if)

    watched.engine.runtime.forward.run = fragile  # type: ignore[method-assign]
    good = watched.submit(watched.engine.new_kv(), [7] * 40, SamplingParams(temperature=0, max_new_tokens=60))
    bad_kv = watched.engine.new_kv()
    bad = watched.submit(bad_kv, [13] * 10).wait()
    assert bad.reason is FinishReason.FAILED
    assert "kernel exploded" not in str(bad.error)  # a person gets a sentence, the log gets the cause
    assert good.wait().reason is FinishReason.LENGTH
    assert watched.submit(bad_kv, [9] * 10).wait().reason is FinishReason.LENGTH


def test_memory_that_runs_out_is_a_sentence(watched: WatchedEngine) -> None:
    def full(feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    watched.engine.runtime.forward.run = full  # type: ignore[method-assign]
    finished = watched.submit(watched.engine.new_kv(), [9] * 10).wait()
    assert finished.reason is FinishReason.FAILED
    assert "ran out of memory" in str(finished.error)


def test_a_listener_that_raises_affects_no_other_request(
    watched: WatchedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def rude(event: object) -> None:
        raise RuntimeError("listener broke")

    request = GenerationRequest((5, 6, 7), watched.engine.new_kv(), SamplingParams(temperature=0, max_new_tokens=3))
    watched.engine.submit(request, rude)
    assert watched.submit(watched.engine.new_kv(), [9] * 10).wait().reason is FinishReason.LENGTH
    assert "listener failed" in caplog.text


def test_seeded_answers_repeat_and_unseeded_ones_differ(watched: WatchedEngine) -> None:
    def sample(seed: int | None) -> tuple[int, ...]:
        params = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, max_new_tokens=24, seed=seed)
        answer = watched.submit(watched.engine.new_kv(), [7] * 20, params)
        answer.wait()
        return answer.token_ids

    assert sample(11) == sample(11)
    assert len({sample(None) for _ in range(3)}) > 1


def test_every_setting_at_once_works_on_the_engines_own_logits(watched: WatchedEngine) -> None:
    params = SamplingParams(
        temperature=0.8, top_p=0.9, top_k=40, min_p=0.01, repetition_penalty=1.2, max_new_tokens=20, seed=3
    )
    answer = watched.submit(watched.engine.new_kv(), [7] * 20, params)
    assert answer.wait().error is None
    assert len(set(answer.token_ids)) > 15  # penalised tokens seldom return


def test_an_answer_that_is_continued_goes_on_in_the_middle_of_a_character(watched: WatchedEngine) -> None:
    # Byte-level tokens: the ids of "ä" are two, and a continued answer may begin with only the first of them.
    tokenizer = watched.tokenizer
    half = tokenizer.encode("ä", add_special_tokens=False).ids[:1]
    answer = watched.submit(watched.engine.new_kv(), [7] * 20 + half, prefix=1)
    answer.wait()
    assert tokenizer.decode([*half, *answer.token_ids]).startswith(answer.text)


def test_closing_ends_what_runs_and_frees_what_is_held(watched: WatchedEngine) -> None:
    kv = watched.engine.new_kv()
    endless = watched.submit(kv, [7] * 20, SamplingParams(temperature=0, max_new_tokens=400))
    until(lambda: len(endless.events) >= 3, every_s=0.001)
    watched.engine.close()
    watched.engine.close()
    assert endless.wait().reason is FinishReason.ABORTED
    watched.engine.release(kv)
    assert kv.allocated_bytes == 0
    late = watched.submit(watched.engine.new_kv(), [7] * 20).wait()
    assert late.reason is FinishReason.FAILED
    assert late.error


def test_estimates_grow_with_length_and_depth(watched: WatchedEngine) -> None:
    estimate = watched.engine.estimate_read_s
    assert estimate(0, 0) == 0
    assert 0 < estimate(0, 100) <= estimate(0, 400)
    assert estimate(0, 100) <= estimate(300, 400)


def test_the_kernel_is_the_one_torch_chose(watched: WatchedEngine) -> None:
    assert watched.engine.info.kernel == "SDPA flash (CPU)"


def test_log_probabilities_come_with_every_token_that_asked_for_them(watched: WatchedEngine) -> None:
    asked = SamplingParams(temperature=0, max_new_tokens=5, top_logprobs=3, frequency_penalty=0.5)
    answer = watched.submit(watched.engine.new_kv(), [5, 6, 7], asked)
    answer.wait()
    deltas = [event for event in answer.events if isinstance(event, TokenDelta)]
    assert len(deltas) == 5
    first = deltas[0].logprobs
    assert first is not None
    assert first.chosen == first.top[0]  # greedy, and nothing to penalise yet
    for delta in deltas:
        assert delta.logprobs is not None
        assert len(delta.logprobs.top) == 3
        assert all(one.logprob <= 0 for one in delta.logprobs.top)
    plain = watched.submit(watched.engine.new_kv(), [5, 6, 7], SamplingParams(temperature=0, max_new_tokens=2))
    plain.wait()
    assert all(event.logprobs is None for event in plain.events if isinstance(event, TokenDelta))
