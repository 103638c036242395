"""Long RoPE: every conversation is read with the frequencies of its own length, whatever shares its forward."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from model_runtime.interface.config import EngineConfig
from model_runtime.interface.numerics import with_long_rope
from model_runtime.interface.protocol import ReadRequest
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import SegmentIdentity, identify
from model_runtime.kv.slab import KVSlab
from tests.model_runtime.engine.test_exactness import LOGIT_TOLERANCE, some_ids
from tests.model_runtime.harness import Answer, WatchedEngine, full_read, loaded_tiny
from tests.model_runtime.tiny_models import LONG_ROPE_TOKENS, SHORT_ROPE_TOKENS, tiny_long_rope
from tests.polling import until

Pair = tuple[WatchedEngine, torch.nn.Module]
SHORT = SHORT_ROPE_TOKENS


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_long_rope(tmp_path_factory.mktemp("tiny") / "long-rope")


@pytest.fixture(params=["slabs", "arena"])
def pair(request: pytest.FixtureRequest, directory: Path) -> Iterator[Pair]:
    """An engine and an untouched copy of its model."""
    arena_bytes = None if request.param == "slabs" else 1 << 22
    config = EngineConfig(
        prefill_chunk_tokens=32, prompt_lookup="on", kv_arena_bytes=arena_bytes, pinned_host_bytes=1 << 20
    )
    watched = WatchedEngine(loaded_tiny(directory), config, LONG_ROPE_TOKENS)
    yield watched, loaded_tiny(directory).model
    watched.close()


def assert_each_token_equals_a_read(pair: Pair, answer: Answer) -> None:
    """transformers reads the ledger up to each token alone: its length then decides the frequencies."""
    watched, reference = pair
    ledger = answer.ledger + answer.token_ids
    for place in range(len(answer.ledger), len(ledger)):
        expected = full_read(reference, ledger[:place])[-1]
        assert ledger[place] == int(expected.argmax()), place
        torch.testing.assert_close(watched.logits[ledger[:place]], expected, atol=LOGIT_TOLERANCE, rtol=0)


def answered(pair: Pair, kv: object, ledger: Sequence[int], tokens: int = 8) -> Answer:
    answer = pair[0].submit(kv, ledger, SamplingParams(temperature=0, max_new_tokens=tokens))
    assert answer.wait().error is None
    assert_each_token_equals_a_read(pair, answer)
    return answer


def test_the_frequencies_change_the_answer(pair: Pair) -> None:
    """Otherwise the other tests could not fail."""
    ids = some_ids(random.Random(1), SHORT + 1)
    long, short = full_read(pair[1], ids)[SHORT - 1], full_read(pair[1], ids[:-1])[-1]
    assert float((long - short).abs().max()) > 100 * LOGIT_TOLERANCE


@pytest.mark.parametrize(
    "tokens", [SHORT - 20, SHORT - 9, SHORT - 8, SHORT - 7, SHORT - 1, SHORT, SHORT + 1, SHORT + 40]
)
def test_an_answer_from_any_length_on(pair: Pair, tokens: int) -> None:
    kv = pair[0].engine.new_kv()
    answer = answered(pair, kv, some_ids(random.Random(tokens), tokens))
    finished = answer.wait()
    crosses = tokens <= SHORT < tokens + 7  # the last token is not fed any more
    assert finished.reread_tokens == (SHORT if crosses else 0)
    assert (finished.fed_tokens, finished.is_rope_changed) == (tokens, False)
    assert kv.length_tokens == tokens + 7
    assert kv.is_long_rope is (tokens + 7 > SHORT)


def test_a_crossing_between_two_turns_reads_all_again_and_turns_beyond_only_their_delta(pair: Pair) -> None:
    rng, kv = random.Random(3), pair[0].engine.new_kv()
    ledger = some_ids(rng, SHORT - 12)
    for turn in range(5):
        answer = answered(pair, kv, ledger)
        finished = answer.wait()
        assert finished.is_rope_changed is (turn == 1)
        assert finished.reused_tokens == (0 if turn <= 1 else len(ledger) - 13)
        ledger = [*answer.ledger, *answer.token_ids, *some_ids(rng, 12)]
    assert len(ledger) > 2 * SHORT


def test_an_edit_back_to_a_short_history_and_beyond_again(pair: Pair) -> None:
    rng, kv = random.Random(4), pair[0].engine.new_kv()
    ledger = some_ids(rng, SHORT + 30)
    answered(pair, kv, ledger)
    back = answered(pair, kv, [*ledger[:30], *some_ids(rng, 5)], 4).wait()
    assert (back.is_rope_changed, back.reused_tokens, back.fed_tokens) == (True, 0, 35)
    same = answered(pair, kv, [*ledger[:30], *some_ids(rng, 5)], 4).wait()
    assert (same.is_rope_changed, same.reused_tokens) == (False, 30)
    beyond = answered(pair, kv, ledger).wait()
    assert (beyond.is_rope_changed, beyond.reused_tokens) == (True, 0)
    cropped = answered(pair, kv, [*ledger[:40], *some_ids(rng, SHORT)]).wait()
    assert (cropped.is_rope_changed, cropped.reused_tokens) == (False, 40)


def test_conversations_on_both_sides_share_their_forwards(pair: Pair) -> None:
    watched, rng = pair[0], random.Random(5)
    kvs = [watched.engine.new_kv() for _ in range(4)]
    ledgers = [some_ids(rng, tokens) for tokens in (20, SHORT - 4, SHORT + 1, 2 * SHORT)]
    for _ in range(3):
        answers = [watched.submit(kv, ledger) for kv, ledger in zip(kvs, ledgers, strict=True)]
        for answer in answers:
            assert answer.wait().error is None
            assert_each_token_equals_a_read(pair, answer)
        ledgers = [[*a.ledger, *a.token_ids, *some_ids(rng, 4)] for a in answers]


def test_an_answer_that_repeats_itself_is_guessed_across_the_boundary(pair: Pair) -> None:
    watched, rng = pair[0], random.Random(6)
    ledger = (some_ids(rng, 6) * SHORT)[: SHORT - 12]
    answered(pair, watched.engine.new_kv(), ledger, 40)


def saved(watched: WatchedEngine, kv: KVSlab, path: Path) -> list[SegmentIdentity]:
    """The KV's rows in two files, as sessions would cut them."""
    numerics = with_long_rope("f") if kv.is_long_rope else "f"
    ids = tuple(kv.token_ids)
    head = identify(None, ids[:20], numerics)
    identities = [head, identify(head, ids[20:], numerics)]
    for identity in identities:
        watched.engine.save(watched.engine.stage(kv, identity), path / identity.key)
    return identities


@pytest.mark.parametrize("tokens", [SHORT - 30, SHORT + 20])
def test_rows_of_both_sides_come_back_from_files(pair: Pair, tokens: int, tmp_path: Path) -> None:
    watched, rng = pair[0], random.Random(tokens)
    kv = watched.engine.new_kv()
    answer = answered(pair, kv, some_ids(rng, tokens))
    identities = saved(watched, kv, tmp_path)
    watched.engine.release(kv)
    for back in (watched.engine.new_kv(), kv):
        segments = [watched.engine.load(identity, tmp_path / identity.key) for identity in identities]
        watched.engine.restore(back, segments)
        found = answered(pair, back, [*answer.ledger, *answer.token_ids, *some_ids(rng, 4)]).wait()
        assert (found.fed_tokens, found.is_rope_changed) == (5, False)


def test_rows_of_one_side_are_never_taken_for_the_other(pair: Pair, tmp_path: Path) -> None:
    engine, rng = pair[0].engine, random.Random(8)
    kv = engine.new_kv()
    answer = answered(pair, kv, some_ids(rng, SHORT + 20))
    ids = tuple(kv.token_ids)
    short, long = identify(None, ids[:20], "f"), identify(None, ids[:20], with_long_rope("f"))
    assert short.key != long.key
    with pytest.raises(ValueError, match="other rotary frequencies"):
        engine.stage(kv, short)
    segment = engine.stage(kv, long)
    other = engine.new_kv()
    answered(pair, other, answer.ledger[:20], 1)
    with pytest.raises(ValueError, match="rotary frequencies"):
        engine.restore(other, [engine.stage(kv, identify(long, ids[20:40], with_long_rope("f")))])
    engine.release(other)
    engine.restore(other, [segment])
    found = answered(pair, other, answer.ledger[:25]).wait()  # long rows, but a short ledger
    assert (found.reused_tokens, found.is_rope_changed) == (0, True)


def test_a_shared_beginning_is_copied_only_with_its_own_frequencies(pair: Pair) -> None:
    engine, rng = pair[0].engine, random.Random(9)
    source, target = engine.new_kv(), engine.new_kv()
    ledger = some_ids(rng, SHORT + 20)
    answered(pair, source, ledger)
    answered(pair, target, ledger[:40], 4)  # the same beginning, with the short ones
    other = [*ledger[:50], *some_ids(rng, 40)]
    assert engine.copy_beginning(source, target, other, 16) == (0, 50)
    assert target.is_long_rope
    assert answered(pair, target, other).wait().reused_tokens == 50


def test_read_ahead_and_verified_on_both_sides(pair: Pair) -> None:
    watched, rng = pair[0], random.Random(10)
    for tokens in (SHORT - 20, SHORT, SHORT + 1, SHORT + 40):
        kv, ledger = watched.engine.new_kv(), tuple(some_ids(rng, tokens))
        read = Answer(ledger)
        watched.engine.read(ReadRequest(ledger, kv), read.heard)
        assert read.wait().fed_tokens == tokens
        ids = (*ledger, 5)
        found = watched.engine.verify(watched.engine.new_kv(), ids, [kv], lambda: False, kv.is_long_rope)
        assert found is not None
        assert found.agrees
        assert found.tokens == tokens
        wrong = watched.engine.verify(watched.engine.new_kv(), ids[:41], [kv], lambda: False, not kv.is_long_rope)
        assert wrong is not None
        assert not wrong.agrees
        answered(pair, kv, ids)


def test_a_stop_while_all_is_read_again_keeps_what_is_right(pair: Pair) -> None:
    watched, rng = pair[0], random.Random(11)
    kv, ledger = watched.engine.new_kv(), some_ids(rng, SHORT - 3)
    seen = watched.fed
    answer = watched.submit(kv, ledger, SamplingParams(temperature=0, max_new_tokens=60))
    until(lambda: watched.fed > seen + len(ledger) + 3, 60.0, 0.0005)
    answer.abort()
    answer.wait()
    assert_each_token_equals_a_read(pair, answer)
    answered(pair, kv, [*answer.ledger, *answer.token_ids, *some_ids(rng, 9)])


def test_a_beginning_is_read_for_the_ledger_that_it_belongs_to(pair: Pair) -> None:
    """A draft without its unstable end is shorter than its turn."""
    watched, rng = pair[0], random.Random(12)
    ledger, kv = tuple(some_ids(rng, SHORT + 4)), watched.engine.new_kv()
    for whole_tokens, is_long in ((SHORT + 4, True), (SHORT, False), (0, False), (SHORT + 1, True)):
        read = Answer(ledger[: SHORT - 4])
        watched.engine.read(ReadRequest(read.ledger, kv, whole_tokens), read.heard)
        assert read.wait().error is None
        assert (kv.length_tokens, kv.is_long_rope) == (SHORT - 4, is_long)
    assert answered(pair, kv, ledger).wait().fed_tokens == 8


def test_a_stop_string_at_the_length_leaves_rows_of_one_set(pair: Pair) -> None:
    """The ids of a cut token's beginning may be too many for the short frequencies: then the next turn feeds them."""
    watched, rng, late = pair[0], random.Random(13), 0
    for tokens in range(SHORT - 9, SHORT, 2):
        ledger = some_ids(rng, tokens)
        text = answered(pair, watched.engine.new_kv(), ledger, 12).text
        for begin in range(0, len(text) - 2, 2):
            stop = text[begin : begin + 3]
            if "\ufffd" in stop:
                continue
            kv = watched.engine.new_kv()
            sampling = SamplingParams(temperature=0, max_new_tokens=12, stop_strings=(stop,))
            answer = watched.submit(kv, ledger, sampling)
            finished = answer.wait()
            assert finished.error is None
            whole_tokens = len(answer.token_ids) - finished.cut_tokens
            ids = (*ledger, *answer.token_ids[:whole_tokens], *finished.part_ids)
            assert tuple(kv.token_ids) == ids[: kv.length_tokens]
            late += kv.length_tokens < len(ids) - 1
            answered(pair, kv, [*ids, *some_ids(rng, 3)], 2)
            watched.engine.release(kv)
    assert late


@pytest.mark.parametrize("limit_tokens", [SHORT, SHORT + 1])
def test_there_is_one_set_where_the_context_ends_before_the_other(directory: Path, limit_tokens: int) -> None:
    watched = WatchedEngine(loaded_tiny(directory), EngineConfig(), limit_tokens)
    info = watched.engine.info
    assert info.short_rope_tokens == (None if limit_tokens == SHORT else SHORT)
    assert any(f"passes {SHORT} tokens" in note for note in info.notes) is (limit_tokens > SHORT)
    reference = loaded_tiny(directory).model
    answered((watched, reference), watched.engine.new_kv(), some_ids(random.Random(14), SHORT - 5))
    watched.close()
