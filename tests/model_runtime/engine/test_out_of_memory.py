"""When the device refuses memory: idle KVs go, the step runs once more, and then that turn alone fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.errors import DeviceOutOfMemory
from model_runtime.interface.events import FinishReason
from model_runtime.interface.segments import identify
from model_runtime.kv.slab import KVSlab
from tests.model_runtime.harness import WatchedEngine, loaded_tiny
from tests.model_runtime.tiny_models import tiny_llama

LEDGER = list(range(3, 60))
Run = Callable[..., torch.Tensor]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedEngine]:
    engine = WatchedEngine(loaded_tiny(tiny_llama(tmp_path / "llama")))
    yield engine
    engine.close()


def refuse(watched: WatchedEngine, refuses: Callable[[Sequence[Feed]], bool]) -> None:
    """Forwards that are refused memory, as torch says it."""
    run: Run = watched.engine.runtime.forward.run

    def refusing(feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
        if refuses(feeds):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return run(feeds, abort_if)

    watched.engine.runtime.forward.run = refusing  # type: ignore[method-assign]


def test_idle_kvs_go_and_the_turn_goes_on(watched: WatchedEngine) -> None:
    engine = watched.engine
    idle, kv = engine.new_kv(), engine.new_kv()
    watched.submit(idle, LEDGER).wait()
    expected = watched.submit(kv, LEDGER).wait()
    asked: list[int] = []

    def give() -> list[KVSlab]:
        asked.append(1)
        return [idle]

    engine.give_memory_back_with(give)
    refuse(watched, lambda feeds: bool(idle.allocated_bytes))
    engine.release(kv)
    answer = watched.submit(kv, LEDGER)
    assert answer.wait().reason is expected.reason is FinishReason.LENGTH
    assert asked == [1]
    assert idle.allocated_bytes == 0


def test_what_does_not_fit_the_second_time_fails_alone(watched: WatchedEngine) -> None:
    engine = watched.engine
    small, large = engine.new_kv(), engine.new_kv()
    refuse(watched, lambda feeds: any(feed.slab is large for feed in feeds))
    answers = [watched.submit(small, LEDGER), watched.submit(large, LEDGER)]
    assert answers[0].wait().reason is FinishReason.LENGTH
    failed = answers[1].wait()
    assert failed.reason is FinishReason.FAILED
    assert failed.error is not None
    assert failed.error.startswith("The device ran out of memory for this answer.")
    assert watched.submit(small, [*LEDGER, 4]).wait().reason is FinishReason.LENGTH


def test_a_restore_is_tried_again_too(watched: WatchedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = watched.engine
    kv, back = engine.new_kv(), engine.new_kv()
    watched.submit(kv, LEDGER).wait()
    segment = engine.stage(kv, identify(None, LEDGER, "a"))
    room, refusals = back.ensure_room, [1]

    def ensure_room(slab: KVSlab, tokens: int) -> None:
        if refusals.pop() if refusals else 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        room(tokens)

    monkeypatch.setattr(KVSlab, "ensure_room", ensure_room)
    engine.restore(back, [segment])
    assert back.length_tokens == len(LEDGER)
    refusals += [1, 1]
    engine.release(back)
    with pytest.raises(DeviceOutOfMemory):
        engine.restore(back, [segment])
