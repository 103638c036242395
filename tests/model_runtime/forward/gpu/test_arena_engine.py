"""The engine over an arena: what runs on a GPU, kernels apart, against a full read and against the slabs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model_runtime.forward.arena.arena import STEP_TOKENS
from model_runtime.forward.arena.step_inputs import StepRows
from model_runtime.forward.arena.varlen import VarlenKernel
from model_runtime.forward.few_rows.few_rows_forward import FewRowsForward
from model_runtime.forward.gpu.arena_forward import ArenaForward
from model_runtime.forward.gpu.cuda_graphs import RecordedSteps
from model_runtime.forward.gpu.graph_shapes import DecodeShape, StepShape, TurnShape
from model_runtime.forward.probe import probe_packing
from model_runtime.interface.config import EngineConfig, PromptLookup
from model_runtime.interface.errors import ModelLoadError
from model_runtime.interface.events import FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import identify
from tests.model_runtime.engine.test_exactness import assert_equals_full_read, some_ids
from tests.model_runtime.harness import GREEDY, SOME_FAMILIES, TINY, WatchedEngine, full_read, loaded_tiny
from tests.polling import until

ROOM_TOKENS = 12 * STEP_TOKENS


def over_arena(
    directory: Path,
    tokens: int = ROOM_TOKENS,
    record: bool = True,
    lookup: PromptLookup = "off",
    chunk_tokens: int = 32,
) -> WatchedEngine:
    loaded = loaded_tiny(directory)
    geometry = probe_packing(loaded.model, loaded.kv_dtype, 512, step_tokens=STEP_TOKENS)
    config = EngineConfig(
        prefill_chunk_tokens=chunk_tokens,
        kv_arena_bytes=tokens * geometry.bytes_per_token,
        pinned_host_bytes=1 << 20,
        record_steps=record,
        prompt_lookup=lookup,
    )
    return WatchedEngine(loaded, config)


def forward_of(watched: WatchedEngine) -> ArenaForward:
    forward = watched.engine.runtime.forward
    assert isinstance(forward, ArenaForward)
    return forward


@pytest.fixture(params=SOME_FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return TINY[request.param](tmp_path / request.param)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedEngine]:
    engine = over_arena(TINY["qwen3"](tmp_path / "qwen3"))
    yield engine
    engine.close()


def test_conversations_in_a_crowded_arena_equal_a_full_read(directory: Path) -> None:
    watched, reference = over_arena(directory), loaded_tiny(directory).model
    forward = forward_of(watched)
    moves = []
    compact = forward.arena.compact
    forward.arena.compact = lambda kv: moves.append(kv) or compact(kv)  # type: ignore[method-assign, func-returns-value]
    randomness = random.Random(3)
    kvs = [watched.engine.new_kv() for _ in range(4)]
    ledgers = [some_ids(randomness, 20 + 17 * n) for n in range(4)]
    for turn in range(4):
        answers = [watched.submit(kv, ledger) for kv, ledger in zip(kvs, ledgers, strict=True)]
        for answer in answers:
            assert answer.wait().error is None
            assert_equals_full_read(watched, reference, answer)
        ledgers = [[*a.ledger, *a.token_ids, *some_ids(randomness, 9)] for a in answers]
        ledgers[turn] = [*ledgers[turn][:-15], *some_ids(randomness, 60)]  # another branch, cropped in the middle
        if turn % 2:
            watched.engine.release(kvs[turn])  # a hole for the others
    assert moves
    assert forward.recorded_steps is not None
    assert forward.recorded_steps.recordings >= 2
    watched.close()


def test_recorded_steps_are_the_steps(directory: Path) -> None:
    """Padded rows, fixed buffers and bounds that are too long change nothing."""
    recorded, plain = over_arena(directory), over_arena(directory, record=False)
    assert forward_of(plain).recorded_steps is forward_of(plain).recorded_turns is None
    ledgers = [some_ids(random.Random(n), 30 + n) for n in range(3)]
    for watched in (recorded, plain):
        answers = [watched.submit(watched.engine.new_kv(), ledger) for ledger in ledgers]
        for answer in answers:
            answer.wait()
    assert recorded.logits.keys() == plain.logits.keys()
    for ids, logits in plain.logits.items():
        torch.testing.assert_close(recorded.logits[ids], logits, atol=1e-5, rtol=0)
    recorded.close()
    plain.close()


def test_guessed_tokens_are_checked_over_the_arena(tmp_path: Path) -> None:
    directory = TINY["llama"](tmp_path / "llama")
    reference = loaded_tiny(directory).model
    watched = over_arena(directory, lookup="on")
    kv, ledger = watched.engine.new_kv(), some_ids(random.Random(4), 30) * 3
    for _ in range(3):
        answer = watched.submit(kv, ledger, SamplingParams(temperature=0, max_new_tokens=30))
        assert answer.wait().error is None
        assert_equals_full_read(watched, reference, answer)
        ledger = [*answer.ledger, *answer.token_ids, *ledger[:12]]
    watched.close()


def test_segments_go_from_the_arena_to_slabs_and_back(tmp_path: Path) -> None:
    directory = TINY["gemma3"](tmp_path / "gemma3")
    reference = loaded_tiny(directory).model
    arena, slabs = over_arena(directory), WatchedEngine(loaded_tiny(directory))
    ledger = some_ids(random.Random(8), 70)
    held: list[int] = []
    kv = arena.engine.new_kv()
    for number, watched in enumerate((arena, slabs, arena)):
        if number:
            back = watched.engine.new_kv()
            identity = identify(None, held, "f")
            watched.engine.restore(back, [watched.engine.load(identity, tmp_path / "segment")])
            kv = back
        answer = watched.submit(kv, ledger)
        assert answer.wait().reused_tokens == len(held)
        assert_equals_full_read(watched, reference, answer)
        held = list(kv.token_ids)
        watched.engine.save(watched.engine.stage(kv, identify(None, held, "f")), tmp_path / "segment")
        ledger = [*answer.ledger, *answer.token_ids, *some_ids(random.Random(number), 5)]
    arena.close()
    slabs.close()


def test_an_answer_has_its_memory_from_the_start_and_gives_back_what_it_did_not_need(watched: WatchedEngine) -> None:
    kv = watched.engine.new_kv()
    answer = watched.submit(kv, [5] * 40, SamplingParams(temperature=0, max_new_tokens=200))
    until(lambda: len(answer.events) >= 6, 60.0, 0.0005)
    assert kv.allocated_bytes == watched.engine.kv_bytes(240)
    answer.abort()
    answer.wait()
    watched.submit(watched.engine.new_kv(), [5], GREEDY).wait()  # the engine has gone on
    assert kv.allocated_bytes == watched.engine.kv_bytes(kv.length_tokens)
    assert watched.engine.kv_bytes(kv.length_tokens) - kv.length_tokens * watched.engine.info.kv_bytes_per_token < (
        STEP_TOKENS * watched.engine.info.kv_bytes_per_token
    )


def test_an_answer_without_memory_fails_alone_and_with_a_sentence(watched: WatchedEngine) -> None:
    good = watched.submit(watched.engine.new_kv(), [7] * 40, SamplingParams(temperature=0, max_new_tokens=400))
    kv = watched.engine.new_kv()
    bad = watched.submit(kv, [9] * 10, SamplingParams(temperature=0, max_new_tokens=460)).wait()
    assert bad.reason is FinishReason.FAILED
    assert "ran out of memory" in str(bad.error)
    assert kv.allocated_bytes == 0
    assert good.wait().reason is FinishReason.LENGTH
    assert watched.submit(kv, [9] * 10).wait().reason is FinishReason.LENGTH


def test_a_context_shorter_than_what_is_checked_at_the_start_will_do(tmp_path: Path) -> None:
    loaded = loaded_tiny(TINY["gptbigcode"](tmp_path / "gptbigcode"))
    watched = WatchedEngine(loaded, EngineConfig(kv_arena_bytes=1 << 20), context_limit_tokens=16)
    assert forward_of(watched).recorded_turns is not None
    assert watched.submit(watched.engine.new_kv(), [3] * 10).wait().error is None
    watched.close()


def test_a_budget_for_nothing_is_refused_at_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="another --device-kv-budget"):
        over_arena(TINY["llama"](tmp_path / "llama"), tokens=STEP_TOKENS - 1)


def test_a_device_that_computes_something_else_keeps_slabs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = TINY["llama"](tmp_path / "llama")
    replays = RecordedSteps.run

    def wrong(self: RecordedSteps, shape: StepShape, rows: StepRows) -> torch.Tensor:
        return replays(self, shape, rows) + 1e-2 * torch.arange(512) * isinstance(shape, wrong_shape)

    monkeypatch.setattr(RecordedSteps, "run", wrong)
    for wrong_shape, lost, kept in (
        (DecodeShape, "recorded_steps", "recorded_turns"),
        (TurnShape, "recorded_turns", "recorded_steps"),
    ):
        launched = over_arena(directory)
        assert getattr(forward_of(launched), lost) is None
        assert getattr(forward_of(launched), kept) is not None
        assert f"{'decode steps' if wrong_shape is DecodeShape else 'short turns'} disagree" in caplog.text
        launched.close()
    monkeypatch.setattr(VarlenKernel, "attend", lambda self, query, keys, values, *rest: query * 0.5)
    slabs = over_arena(directory)
    assert not isinstance(slabs.engine.runtime.forward, ArenaForward)
    assert slabs.submit(slabs.engine.new_kv(), [7] * 40).wait().error is None
    slabs.close()


def test_a_forward_of_few_rows_that_computes_something_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = TINY["qwen3"](tmp_path / "qwen3")
    right = FewRowsForward.logits
    monkeypatch.setattr(FewRowsForward, "logits", lambda *arguments: right(*arguments) + 1e-2 * torch.arange(512))
    watched = over_arena(directory)
    assert forward_of(watched).few_rows is None
    assert forward_of(watched).recorded_steps is not None
    assert "our own forward of few rows disagrees" in caplog.text
    answer = watched.submit(watched.engine.new_kv(), [7] * 40)
    assert answer.wait().error is None
    assert_equals_full_read(watched, loaded_tiny(directory).model, answer)
    watched.close()


def test_only_the_common_decoder_has_a_forward_of_few_rows_of_its_own(directory: Path) -> None:
    watched = over_arena(directory)
    assert (forward_of(watched).few_rows is not None) == (directory.name in ("llama", "qwen3"))
    watched.close()


def test_closing_gives_the_arena_back(watched: WatchedEngine) -> None:
    kv = watched.engine.new_kv()
    watched.submit(kv, [7] * 40).wait()
    arena = forward_of(watched).arena
    assert arena.allocated_bytes >= watched.engine.kv_bytes(ROOM_TOKENS)
    watched.engine.close()
    watched.engine.close()
    assert arena.allocated_bytes == 0
    watched.engine.release(kv)
    assert kv.allocated_bytes == 0


def test_a_rebuilt_engine_has_an_arena_of_its_own_and_the_old_one_is_gone(watched: WatchedEngine) -> None:
    engine = watched.engine
    kv, arena, pool = engine.new_kv(), forward_of(watched).arena, engine.runtime.host_pool
    ledger = some_ids(random.Random(6), 40)
    first = watched.submit(kv, ledger)
    first.wait()
    engine.rebuild()
    assert arena.allocated_bytes == kv.allocated_bytes == 0
    assert engine.runtime.host_pool is pool
    again = watched.submit(engine.new_kv(), ledger)
    assert again.wait().error is None
    assert again.token_ids == first.token_ids


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_answers_equal_a_full_read_but_for_near_ties(directory: Path) -> None:
    """bfloat16, the flash kernel, decode steps as CUDA graphs, against the model's own attention."""
    loaded = loaded_tiny(directory)
    loaded.model.to("cuda", torch.bfloat16)
    half = type(loaded)(**{**{n: getattr(loaded, n) for n in loaded.__slots__}, "kv_dtype": torch.bfloat16})
    reference = loaded_tiny(directory).model.to("cuda", torch.bfloat16)
    watched = WatchedEngine(half, EngineConfig(prefill_chunk_tokens=32, kv_arena_bytes=1 << 24))
    answer = watched.submit(watched.engine.new_kv(), some_ids(random.Random(1), 60))
    assert answer.wait().error is None
    assert "flash" in watched.engine.info.kernel
    expected = full_read(reference, answer.ledger + answer.token_ids)
    for place, token_id in enumerate(answer.token_ids, start=len(answer.ledger)):
        best = expected[place - 1].float()
        assert float(best.max() - best[token_id]) < 0.1 * float(best.std())
    watched.close()
