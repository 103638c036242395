"""What a stop string leaves behind: an answer's ids and KV end where its text ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_runtime.interface.config import EngineConfig, PromptLookup
from model_runtime.interface.events import Finished, FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.loading.loaded import LoadedModel
from tests.model_runtime.harness import TINY, Answer, WatchedEngine, full_read, loaded_tiny

LONG = SamplingParams(temperature=0, max_new_tokens=40)
PROMPT = [5] * 40


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TINY["llama"](tmp_path_factory.mktemp("stops") / "llama")


@pytest.fixture
def reference(directory: Path) -> LoadedModel:
    """Without an engine, which replaces the model's attention."""
    return loaded_tiny(directory)


@pytest.fixture
def watched(directory: Path) -> Iterator[WatchedEngine]:
    engine = WatchedEngine(loaded_tiny(directory), EngineConfig(prefill_chunk_tokens=32, prompt_lookup="auto"))
    yield engine
    engine.close()


def kept(answer: Answer) -> tuple[int, ...]:
    """The ids of a finished answer."""
    finished = answer.wait()
    return (*answer.token_ids[: len(answer.token_ids) - finished.cut_tokens], *finished.part_ids)


def shown(answer: Answer) -> str:
    return answer.text + answer.wait().text_tail


def test_the_ids_and_the_kv_end_where_the_text_ends(watched: WatchedEngine, reference: LoadedModel) -> None:
    """Wherever the stop string begins and ends: at a token's border, within one, in the first token, in the last."""
    tokenizer = watched.tokenizer
    whole = watched.submit(watched.engine.new_kv(), PROMPT, LONG)
    whole.wait()
    text = whole.text
    parts = 0
    for begin in range(0, len(text) - 4, 2):
        stop = text[begin : begin + 1 + begin % 4]
        if "\ufffd" in stop:
            continue
        kv = watched.engine.new_kv()
        answer = watched.submit(kv, PROMPT, replace(LONG, stop_strings=(stop,)))
        finished, ids = answer.wait(), kept(answer)
        assert finished.reason is FinishReason.STOP_STRING
        assert shown(answer) == text[: text.index(stop)] == tokenizer.decode(list(ids))
        assert finished.sampled_tokens == len(answer.token_ids)
        assert tuple(kv.token_ids) == (*PROMPT, *ids)[:-1]
        parts += bool(finished.part_ids)
        following = watched.submit(kv, [*PROMPT, *ids, 7, 8, 9], replace(LONG, max_new_tokens=1))
        assert following.wait().fed_tokens == 1 + 3
        expected = full_read(reference.model, (*PROMPT, *ids, 7, 8, 9), 1)[-1]
        assert torch.allclose(watched.logits[(*PROMPT, *ids, 7, 8, 9)], expected, atol=1e-4)
        watched.engine.release(kv)
    assert parts > 5


def test_the_part_of_a_token_is_fed_while_others_go_on(watched: WatchedEngine) -> None:
    text, stop = text_and_long_part(watched)
    others = [watched.submit(watched.engine.new_kv(), [7 + n] * 30, LONG) for n in range(2)]
    kv = watched.engine.new_kv()
    answer = watched.submit(kv, PROMPT, replace(LONG, stop_strings=(stop,)))
    assert len(answer.wait().part_ids) > 1
    assert shown(answer) == text[: text.index(stop)]
    assert tuple(kv.token_ids) == (*PROMPT, *kept(answer))[:-1]
    for other in others:
        assert other.wait().reason is FinishReason.LENGTH
        assert (other.wait().cut_tokens, other.wait().part_ids) == (0, ())


def test_an_answer_that_a_stop_string_ended_is_complete_whatever_becomes_of_its_rows(watched: WatchedEngine) -> None:
    _, stop = text_and_long_part(watched)
    run = watched.engine.runtime.forward.run

    def fragile(feeds: object, abort_if: object = None) -> torch.Tensor:
        if any(feed.logit_rows == 0 and len(feed.slab.token_ids) > len(PROMPT) for feed in feeds):  # type: ignore
            raise RuntimeError("kernel exploded")
        return run(feeds, abort_if)  # type: ignore[arg-type]

    watched.engine.runtime.forward.run = fragile  # type: ignore[method-assign, assignment]
    kv = watched.engine.new_kv()
    answer = watched.submit(kv, PROMPT, replace(LONG, stop_strings=(stop,)))
    finished = answer.wait()
    assert (finished.reason, finished.error) == (FinishReason.STOP_STRING, None)
    ids = (*PROMPT, *kept(answer))
    assert tuple(kv.token_ids) == ids[: kv.length_tokens]
    assert kv.length_tokens < len(ids) - 1


def test_an_answer_of_another_end_keeps_all_its_ids(watched: WatchedEngine) -> None:
    finished: Finished = watched.submit(watched.engine.new_kv(), PROMPT, replace(LONG, stop_strings=("never",))).wait()
    assert (finished.reason, finished.cut_tokens, finished.part_ids) == (FinishReason.LENGTH, 0, ())


def text_and_long_part(watched: WatchedEngine) -> tuple[str, str]:
    """A text that the model writes after `PROMPT`, and a stop string that begins within a token, behind a beginning
    that only several ids write."""
    whole = watched.submit(watched.engine.new_kv(), PROMPT, LONG)
    whole.wait()
    text = whole.text
    for begin in range(len(text) - 6):
        stop = text[begin : begin + 3]
        if text.index(stop) == begin:
            answer = watched.submit(watched.engine.new_kv(), PROMPT, replace(LONG, stop_strings=(stop,)))
            if len(answer.wait().part_ids) > 1:
                return text, stop
    raise AssertionError("no token of this answer has a beginning of several tokens: choose another prompt")


def test_a_stop_token_of_the_request_is_cut_and_the_next_turn_feeds_its_delta(
    watched: WatchedEngine, reference: LoadedModel
) -> None:
    whole = watched.submit(watched.engine.new_kv(), PROMPT, LONG)
    whole.wait()
    for place in (0, 1, 7, 39):
        token_id = whole.token_ids[place]
        first = whole.token_ids.index(token_id)
        kv = watched.engine.new_kv()
        answer = watched.submit(kv, PROMPT, replace(LONG, stop_token_ids=(token_id,)))
        finished, ids = answer.wait(), kept(answer)
        assert (finished.reason, finished.cut_tokens) == (FinishReason.STOP_STRING, 1)
        assert ids == tuple(whole.token_ids[:first])
        assert tuple(kv.token_ids) == (*PROMPT, *ids)[:-1]
        following = watched.submit(kv, [*PROMPT, *ids, 7, 8, 9], replace(LONG, max_new_tokens=1))
        assert following.wait().fed_tokens == 1 + 3
        expected = full_read(reference.model, (*PROMPT, *ids, 7, 8, 9), 1)[-1]
        assert torch.allclose(watched.logits[(*PROMPT, *ids, 7, 8, 9)], expected, atol=1e-4)
        watched.engine.release(kv)


@pytest.mark.parametrize("lookup", ["on", "off"])
def test_biases_and_least_lengths_hold_in_every_row_of_a_draft(directory: Path, lookup: PromptLookup) -> None:
    """The most likely tokens are forbidden one after another, and the answer is the same with drafts."""
    model = replace(loaded_tiny(directory), stop_token_ids=frozenset(range(0, 400, 3)))
    engine = WatchedEngine(model, EngineConfig(prefill_chunk_tokens=32, prompt_lookup=lookup))
    try:
        for settings in ({"ignore_eos": True}, {"min_new_tokens": 30}, {"logit_bias": ((7, 50.0), (5, -100.0))}):
            answer = engine.submit(engine.engine.new_kv(), PROMPT, replace(LONG, **settings))  # type: ignore[arg-type]
            answer.wait()
            stops = [n for n, token_id in enumerate(answer.token_ids) if token_id in model.stop_token_ids]
            if "ignore_eos" in settings:
                assert (stops, len(answer.token_ids)) == ([], 40)
            elif "min_new_tokens" in settings:
                assert all(place >= 30 for place in stops)
                assert len(answer.token_ids) > 30
            else:
                assert set(answer.token_ids) <= {7} | set(model.stop_token_ids)
    finally:
        engine.close()


def test_ids_that_the_model_does_not_have_fail_that_request_alone(watched: WatchedEngine) -> None:
    for settings in ({"logit_bias": ((10**6, 1.0),)}, {"stop_token_ids": (10**6,)}):
        failed = watched.submit(watched.engine.new_kv(), PROMPT, replace(LONG, **settings))  # type: ignore[arg-type]
        assert failed.wait().error == "The request names token ids that the model does not have."
    assert watched.submit(watched.engine.new_kv(), PROMPT, LONG).wait().reason is FinishReason.LENGTH
