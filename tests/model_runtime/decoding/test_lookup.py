"""Prompt lookup saves forwards and changes nothing else: not the text, not where it ends, not what the KV holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_runtime.decoding.lookup import LONGEST_DRAFT_TOKENS, Drafter, Lookup, NgramIndex, StepWorth
from model_runtime.decoding.step_cost import MOST_ROWS, StepCost
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.config import EngineConfig, PromptLookup
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from tests.model_runtime.harness import TINY, Answer, WatchedEngine, loaded_tiny

GREEDY = SamplingParams(temperature=0, max_new_tokens=48)
DRAWN = SamplingParams(temperature=0.1, top_p=0.9, top_k=40, max_new_tokens=48, seed=9)


def looping(directory: Path) -> LoadedModel:
    """A tiny model that mostly looks at its last token, so that its answers run into loops and drafts of them hold."""
    loaded = loaded_tiny(directory)
    for name, parameter in loaded.model.named_parameters():
        if any(part in name for part in ("o_proj", "attn.c_proj", "wpe")):
            parameter.data.mul_(0.01)
        elif "post_attention_layernorm" in name and "gemma3" in str(directory):  # it would undo that: scale 1 + weight
            parameter.data.fill_(-0.99)
    return loaded


class Pair:
    """The same checkpoint in two engines, with and without lookup."""

    def __init__(self, directory: Path, context_limit_tokens: int = 512, **loaded: object) -> None:
        def start(lookup: PromptLookup) -> WatchedEngine:
            model = replace(looping(directory), **loaded)  # type: ignore[arg-type]
            config = EngineConfig(prefill_chunk_tokens=32, kv_step_tokens=16, prompt_lookup=lookup)
            return WatchedEngine(model, config, context_limit_tokens)

        self.on, self.off = start("on"), start("off")

    def ask(self, ledger: Sequence[int], sampling: SamplingParams) -> tuple[Answer, Answer]:
        """Both answers; they and what their KVs hold are asserted to be equal."""
        kvs = self.on.engine.new_kv(), self.off.engine.new_kv()
        answers = self.on.submit(kvs[0], ledger, sampling), self.off.submit(kvs[1], ledger, sampling)
        with_lookup, without = (answer.wait() for answer in answers)
        assert answers[0].token_ids == answers[1].token_ids
        assert answers[0].text + with_lookup.text_tail == answers[1].text + without.text_tail
        assert with_lookup.reason is without.reason
        assert (with_lookup.cut_tokens, with_lookup.part_ids) == (without.cut_tokens, without.part_ids)
        written = answers[0].token_ids[: len(answers[0].token_ids) - without.cut_tokens]
        assert kvs[0].token_ids == kvs[1].token_ids == [*ledger, *written, *without.part_ids][:-1]
        assert (without.drafted_tokens, without.accepted_tokens) == (0, 0)
        return answers

    def close(self) -> None:
        self.on.close()
        self.off.close()


@pytest.fixture(params=["bloom", "gemma3", "gptbigcode", "llama", "qwen3"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(TINY[request.param](tmp_path / request.param))
    yield pair
    pair.close()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return TINY["llama"](tmp_path / "llama")


def repeating(seed: int, tokens: int = 60) -> list[int]:
    """A prompt that says everything twice."""
    randomness = random.Random(seed)
    half = [randomness.randrange(3, 512) for _ in range(tokens // 2)]
    return half + half


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, replace(DRAWN, repetition_penalty=1.02)])
def test_every_kind_of_sampling_gives_the_same_text(pair: Pair, sampling: SamplingParams) -> None:
    """And the model saw the same: the logits behind every accepted guess are those of a step of its own."""
    accepted = wrong = 0
    for seed in range(3):
        with_lookup, without = pair.ask(repeating(seed), sampling)
        finished = with_lookup.wait()
        accepted += finished.accepted_tokens
        wrong += finished.drafted_tokens - finished.accepted_tokens
        for end in range(len(without.ledger), len(without.ledger) + len(without.token_ids)):
            ids = (*without.ledger, *without.token_ids)[:end]
            torch.testing.assert_close(pair.on.logits[ids], pair.off.logits[ids], atol=1e-4, rtol=0)
    assert accepted > 5
    assert wrong > 0 or sampling is not DRAWN


def test_a_loop_is_written_in_fewer_steps(pair: Pair) -> None:
    steps = 0
    run = pair.on.engine.runtime.forward.run

    def counted(feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return run(feeds, abort_if)

    pair.on.engine.runtime.forward.run = counted  # type: ignore[method-assign]
    pair.ask(repeating(1), replace(GREEDY, max_new_tokens=200))
    assert steps < 100


def test_conversations_in_one_forward_keep_their_own_drafts(pair: Pair) -> None:
    ledgers = [repeating(seed, 40 + 20 * seed) for seed in range(4)]
    kvs = [pair.on.engine.new_kv() for _ in ledgers]
    together = [pair.on.submit(kv, ledger, GREEDY) for kv, ledger in zip(kvs, ledgers, strict=True)]
    for answer in together:
        answer.wait()
    for answer in together:
        assert pair.off.submit(pair.off.engine.new_kv(), answer.ledger, GREEDY).wait()
        assert pair.ask(answer.ledger, GREEDY)[0].token_ids == answer.token_ids


def test_limits_and_stops_hold_inside_a_draft(llama: Path) -> None:
    """For lengths of every remainder by a draft's, and for tokens it may stop at, drafts that reach beyond are cut."""
    pair = Pair(llama, context_limit_tokens=160)
    ledger = repeating(1)
    answer, _ = pair.ask(ledger, replace(GREEDY, max_new_tokens=95))
    assert answer.wait().accepted_tokens > 10
    for limit in (*range(1, 14), *range(14, 40, 5)):
        finished = pair.ask(ledger, replace(GREEDY, max_new_tokens=limit))[0].wait()
        assert (finished.reason, finished.sampled_tokens) == (FinishReason.LENGTH, limit)
    for beyond in range(0, 8, 2):
        long = [*answer.ledger, *answer.token_ids[: 40 + beyond]]
        finished = pair.ask(long, replace(GREEDY, max_new_tokens=500))[0].wait()
        assert (finished.reason, len(long) + finished.sampled_tokens) == (FinishReason.CONTEXT, 160)
    words = [pair.on.tokenizer.decode([token_id]) for token_id in answer.token_ids]
    for word in {word for word in words[20:] if word.strip()}:
        finished = pair.ask(ledger, replace(GREEDY, max_new_tokens=95, stop_strings=(word,)))[0].wait()
        assert finished.reason is FinishReason.STOP_STRING
    pair.close()
    for token_id in set(answer.token_ids[20:25]):
        stopping = Pair(llama, stop_token_ids=frozenset({token_id}))
        assert stopping.ask(ledger, GREEDY)[0].wait().reason is FinishReason.STOP
        stopping.close()


def test_drafts_never_outgrow_what_was_promised(llama: Path) -> None:
    pair = Pair(llama, context_limit_tokens=128)
    for new_tokens in (*range(1, 20), 500):
        ledger = repeating(1, 64)
        kv = pair.on.engine.new_kv()
        pair.on.submit(kv, ledger, replace(GREEDY, max_new_tokens=new_tokens)).wait()
        assert kv.allocated_bytes <= pair.on.engine.kv_bytes(min(len(ledger) + new_tokens, 128))
    pair.close()


def test_the_model_says_how_it_runs(llama: Path) -> None:
    for lookup, found in (("auto", True), ("off", False)):
        watched = WatchedEngine(loaded_tiny(llama), EngineConfig(prompt_lookup=lookup))  # type: ignore[arg-type]
        assert any("Prompt lookup" in note for note in watched.engine.info.notes) is found
        watched.close()


def test_the_longest_and_the_latest_place_counts() -> None:
    index = NgramIndex([1, 2, 3, 10, 11, 2, 3, 20, 21, 1, 2, 3])
    assert index.find(2) == (3, [10, 11])  # 1 2 3 stood once; 2 3 stood later, but is shorter
    index = NgramIndex([2, 3, 10, 9, 2, 3, 20, 8, 2, 3])
    assert index.find(3) == (2, [20, 8, 2])
    assert NgramIndex([1, 2, 3, 4]).find(5) == (0, [])
    assert NgramIndex([]).find(5) == (0, [])


def test_a_loop_is_followed_beyond_what_was_written() -> None:
    assert NgramIndex([5, 6, 7, 5, 6, 7, 5, 6]).find(7) == (3, [7, 5, 6, 7, 5, 6, 7])
    assert NgramIndex([4, 4, 4]).find(4) == (2, [4, 4, 4, 4])


def even_step_s(rows: int) -> float:
    return 10.0 + rows


def test_a_draft_must_be_worth_its_rows() -> None:
    assert StepWorth(1, 1, even_step_s).take(7, 0.9) == 7
    assert StepWorth(1, 1, even_step_s).take(3, 0.9) == 3
    assert StepWorth(1, 1, even_step_s).take(7, 0.05) == 0
    assert 0 < StepWorth(1, 1, even_step_s).take(7, 0.5) < 7
    # Where every row costs a whole step, guessing only pays when it is certain.
    assert StepWorth(1, 1, lambda rows: float(rows)).take(7, 0.95) == 0


def test_many_streams_share_what_their_drafts_cost() -> None:
    """A row that delays eight streams must bring more than one that delays a single stream."""
    assert StepWorth(1, 1, even_step_s).take(7, 0.4) > StepWorth(8, 8, even_step_s).take(7, 0.4)
    shared = StepWorth(4, 4, even_step_s)
    assert shared.take(7, 0.9) >= shared.take(7, 0.4)


@pytest.mark.parametrize(("mode", "expected"), [("auto", [1, 0]), ("on", [1, 2]), ("off", [0, 0])])
def test_where_guesses_of_several_streams_cost_more_only_one_alone_is_weighed(
    llama: Path, mode: PromptLookup, expected: list[int]
) -> None:
    class Stream:
        asked = 0

        def draft(self, context_limit_tokens: int, worth: StepWorth | None) -> None:
            Stream.asked += 1

    watched = WatchedEngine(loaded_tiny(llama), EngineConfig(kv_arena_bytes=1 << 20))
    lookup = Lookup(mode)
    lookup.measure(watched.engine.runtime.forward, watched.engine.runtime.place, 512)
    for streams, asked in zip((1, 2), expected, strict=True):
        Stream.asked = 0
        lookup.add_drafts([Stream() for _ in range(streams)], streams, 512)
        assert Stream.asked == asked
    watched.close()


def test_trust_is_lost_by_wrong_guesses_and_comes_back_without_feeding_any() -> None:
    drafter = Drafter([1, 2, 3] * 5)
    drafts = []
    for token_id in [*([50, 51, 1, 2, 3] * 12), *([1, 2, 3] * 20)]:
        drafts.append(len(drafter.draft(LONGEST_DRAFT_TOKENS, StepWorth(1, 1, even_step_s))))
        drafter.sampled([token_id])
    assert drafts[0] > 0
    assert drafts[-1] == LONGEST_DRAFT_TOKENS
    liar = Drafter([1, 2, 3, 4])
    for token_id in range(200):
        liar.draft(LONGEST_DRAFT_TOKENS, StepWorth(1, 1, even_step_s))
        liar.sampled([1, 2, 1000 + token_id])
    assert liar.draft(LONGEST_DRAFT_TOKENS, StepWorth(1, 1, even_step_s)) == []


def test_costs_come_from_measured_rows_and_straight_lines() -> None:
    cost = StepCost()
    assert cost.seconds(1) == cost.seconds(99)  # nothing was measured yet
    cost.measure(lambda rows: 10.0 + 2.0 * rows)
    for rows in (1, 3, 6, 7, MOST_ROWS, 100):
        assert cost.seconds(rows) == pytest.approx(10 + 2 * rows)
    cost.measure(lambda rows: 30.0 if rows == 4 else 10.0 + rows)
    assert cost.seconds(5) >= cost.seconds(4) >= cost.seconds(2)
