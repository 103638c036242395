"""Short turns that are replayed from recordings: made up to a few sizes, and yet what a full read gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from model_runtime.forward.arena import pieces
from model_runtime.forward.arena.pieces import cut, padded_pieces
from model_runtime.forward.arena.step_inputs import StepRows
from model_runtime.forward.attention import StepAborted
from model_runtime.forward.gpu.cuda_graphs import RecordedSteps
from model_runtime.forward.gpu.graph_shapes import DecodeShape, StepShape, TurnShape, padding_step
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from tests.model_runtime.decoding.test_lookup import repeating
from tests.model_runtime.engine.test_exactness import assert_equals_full_read, some_ids
from tests.model_runtime.forward.arena.test_pieces import keys_of
from tests.model_runtime.forward.gpu.test_arena_engine import forward_of, over_arena
from tests.model_runtime.harness import SOME_FAMILIES, TINY, loaded_tiny

PADDING_ROW = 5000


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[TurnShape]:
    """The shapes of turns that were replayed."""
    shapes: list[TurnShape] = []
    run = RecordedSteps.run

    def watched_run(own: RecordedSteps, shape: StepShape, *arguments: object) -> torch.Tensor:
        if isinstance(shape, TurnShape):
            shapes.append(shape)
        return run(own, shape, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RecordedSteps, "run", watched_run)
    return shapes


def turn(past: int, tokens: int, wanted: int = 1, begin: int = 1000) -> StepRows:
    """A turn of so many rows behind so many others."""
    return StepRows(
        tuple(range(7, 7 + tokens)),
        tuple(range(past, past + tokens)),
        tuple(range(begin + past, begin + past + tokens)),
        tuple(range(tokens - wanted, tokens)),
        (0, tokens),
        (begin, PADDING_ROW),
        (past + tokens,),
        tokens,
        past + tokens,
    )


@pytest.mark.parametrize("seed", range(20))
def test_all_steps_of_a_shape_have_its_sizes_and_see_their_own_keys(seed: int) -> None:
    rng = random.Random(seed)
    tokens, past = rng.randint(2, 64), rng.randint(512, 4000)
    rows = turn(past, tokens, rng.choice([0, 1, tokens]))
    shape = TurnShape.of(rows, heads=32, processors=132)
    assert shape is not None
    assert shape.window is not None
    padded, empty = shape.padded(rows, PADDING_ROW), padding_step(shape, PADDING_ROW)
    assert padded.pieces is not None
    assert empty.pieces is not None
    assert len(padded.numbers) == len(empty.numbers)
    assert [len(part) for part in sizes_of(padded)] == [len(part) for part in sizes_of(empty)]
    assert (padded.pieces.max_q, padded.pieces.max_k) == (empty.pieces.max_q, empty.pieces.max_k)
    assert max(padded.pieces.used_k) <= padded.pieces.max_k
    assert padded.token_ids[-tokens:] == rows.token_ids
    assert padded.slots[:-tokens] == (PADDING_ROW,) * (shape.rows - tokens)
    for row in range(shape.rows - tokens, shape.rows):
        position = past + row - (shape.rows - tokens)
        assert padded.positions[row] == position
        assert sorted(keys_of(padded.pieces, row, shape.rows)) == list(range(1000, 1000 + position + 1))


def sizes_of(step: StepRows) -> list[tuple[int, ...]]:
    assert step.pieces is not None
    return [
        *(step.token_ids, step.positions, step.slots, step.logit_rows, step.begins_q, step.begins_k, step.used_k),
        *(step.pieces.rows, step.pieces.places, step.pieces.begins_q, step.pieces.begins_k, step.pieces.used_k),
    ]


def test_pieces_are_padded_with_rows_that_are_not_used() -> None:
    found = padded_pieces(cut((0, 8), (1000, PADDING_ROW), (300,), 128), 5, PADDING_ROW)
    assert len(found.used_k) == 5
    assert found.used_k[3:] == (1, 1)
    assert found.begins_k[3:] == (PADDING_ROW,) * 3
    assert all(place < 24 for place in found.places)


def test_what_is_no_short_turn_of_one_conversation_has_no_shape() -> None:
    assert TurnShape.of(turn(100, 65), 32, 132) is None
    two = StepRows((1, 2), (0, 0), (0, 64), (0, 1), (0, 1, 2), (0, 64, PADDING_ROW), (1, 1), 1, 1)
    assert TurnShape.of(two, 32, 132) is None
    assert DecodeShape.of(two) == DecodeShape(2, 128)
    assert DecodeShape.of(turn(100, 1, wanted=0)) is None  # read for later, not decoded
    assert TurnShape.of(turn(100, 1, wanted=0), 32, 132) == TurnShape(8, 1, 128, None)


@pytest.mark.parametrize("name", SOME_FAMILIES)
@pytest.mark.parametrize("in_pieces", [False, True])
def test_recorded_turns_equal_a_full_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replayed: list[TurnShape], name: str, in_pieces: bool
) -> None:
    """Turns of all lengths, one behind the other, the first with less behind it than it is made up with."""
    monkeypatch.setattr(pieces, "SHORTEST_TOKENS", 64)
    directory = TINY[name](tmp_path / name)
    watched, reference = over_arena(directory, chunk_tokens=512), loaded_tiny(directory).model
    forward_of(watched).processors = 10_000 if in_pieces else 0
    randomness = random.Random(8)
    lengths = [5, 1, 9, 30, 62, 2, 17, 40, 63, 3]
    for _ in range(2):  # the second time everything is recorded
        replayed.clear()
        kv, ledger = watched.engine.new_kv(), [1]
        for length in lengths:
            ledger = [*ledger, *some_ids(randomness, length)]
            answer = watched.submit(kv, ledger, SamplingParams(temperature=0, max_new_tokens=3))
            assert answer.wait().error is None
            assert_equals_full_read(watched, reference, answer)
            ledger = [*answer.ledger, *answer.token_ids]
            watched.rest()
        watched.engine.release(kv)
    assert len(replayed) >= len(lengths)
    assert {shape.rows for shape in replayed} == {8, 16, 32, 64}
    assert any(shape.window is not None for shape in replayed) == in_pieces
    watched.close()


def test_a_turn_is_launched_once_and_recorded_while_no_one_waits(tmp_path: Path, replayed: list[TurnShape]) -> None:
    watched = over_arena(TINY["llama"](tmp_path / "llama"), chunk_tokens=512)
    recorded = forward_of(watched).recorded_turns
    assert recorded is not None
    kv, ledger = watched.engine.new_kv(), [*range(1, 200)]
    watched.submit(kv, ledger).wait()
    watched.rest()
    replayed.clear()
    before = recorded.recordings
    for turns in range(3):
        answer = watched.submit(kv, ledger := [*ledger, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
        answer.wait()
        assert len(replayed) == turns
        ledger = [*ledger, *answer.token_ids][:-3]
        watched.rest()
    assert recorded.recordings == before + 1
    watched.close()


def test_nothing_is_recorded_while_a_request_waits(tmp_path: Path) -> None:
    watched = over_arena(TINY["llama"](tmp_path / "llama"))
    forward = forward_of(watched)
    recorded = forward.recorded_turns
    assert recorded is not None
    forward.record_waiting()  # what was measured at the start
    kv = forward.arena.new_kv()
    forward.run([Feed(kv, [3] * 200, 1)])
    forward.run([Feed(kv, [4] * 60, 1)])
    before = recorded.recordings
    forward.record_waiting(lambda: True)
    assert recorded.recordings == before
    forward.record_waiting()
    assert recorded.recordings == before + 1
    kv.free()
    watched.close()


def test_guesses_are_checked_by_recorded_steps_from_the_first_on(tmp_path: Path, replayed: list[TurnShape]) -> None:
    directory = TINY["llama"](tmp_path / "llama")
    watched, reference = over_arena(directory, lookup="on", chunk_tokens=512), loaded_tiny(directory).model
    replayed.clear()
    sampling = SamplingParams(temperature=0, max_new_tokens=200)
    answer = watched.submit(watched.engine.new_kv(), repeating(1), sampling)
    assert answer.wait().reason is FinishReason.LENGTH
    assert replayed
    assert all(shape.logit_rows == shape.rows for shape in replayed)
    assert_equals_full_read(watched, reference, answer)
    watched.close()


def test_a_turn_that_is_no_longer_wanted_is_not_begun(tmp_path: Path, replayed: list[TurnShape]) -> None:
    watched = over_arena(TINY["llama"](tmp_path / "llama"))
    forward = forward_of(watched)
    kv = forward.arena.new_kv()
    for _ in range(2):
        forward.run([Feed(kv, [4] * 60, 1)])
        kv.crop(0)
        forward.record_waiting()
    replayed.clear()
    with pytest.raises(StepAborted):
        forward.run([Feed(kv, [4] * 60, 1)], lambda: True)
    assert (kv.length_tokens, replayed) == (0, [])
    forward.run([Feed(kv, [4] * 60, 1)])
    assert len(replayed) == 1
    kv.free()
    watched.close()
