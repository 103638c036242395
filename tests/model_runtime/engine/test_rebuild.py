"""An engine whose thread hangs or died goes on with another one, and what the old one still emits reaches no one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from model_runtime.engine.inbox import GIVEN_UP
from model_runtime.engine.scheduler import Scheduler
from model_runtime.forward.transformers_forward import Feed
from model_runtime.interface.errors import EngineClosed
from model_runtime.interface.events import Finished, FinishReason
from model_runtime.interface.sampling_params import SamplingParams
from model_runtime.interface.segments import identify
from tests.model_runtime.harness import TINY, Answer, WatchedEngine, full_read, loaded_tiny
from tests.polling import pause, until

LONG = SamplingParams(temperature=0, max_new_tokens=60)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return TINY["llama"](tmp_path / "llama")


@pytest.fixture
def watched(directory: Path) -> Iterator[WatchedEngine]:
    engine = WatchedEngine(loaded_tiny(directory))
    yield engine
    engine.close()


class Hang:
    """The next forward blocks, then goes on as if nothing had been, or raises."""

    def __init__(self, watched: WatchedEngine, error: Exception | None = None) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        run = watched.engine.runtime.forward.run

        def blocked(feeds: Sequence[Feed], abort_if: Callable[[], bool] = lambda: False) -> torch.Tensor:
            self.thread = threading.current_thread()
            self.reached.set()
            assert self.gate.wait(30)
            if error is not None:
                raise error
            return run(feeds)  # it does not even check whether the result is still wanted

        watched.engine.runtime.forward.run = blocked  # type: ignore[method-assign]

    def end(self) -> None:
        self.gate.set()
        assert self.thread is not None
        self.thread.join(10)
        assert not self.thread.is_alive()


def assert_exact(answer: Answer, reference: torch.nn.Module) -> None:
    ids = [*answer.ledger, *answer.token_ids]
    expected = full_read(reference, ids).argmax(-1).tolist()
    assert list(answer.token_ids) == expected[len(answer.ledger) - 1 : -1]


@pytest.mark.parametrize("error", [None, RuntimeError("woke up badly")])
def test_a_hanging_forward_is_given_up(watched: WatchedEngine, directory: Path, error: Exception | None) -> None:
    reference = loaded_tiny(directory).model
    engine = watched.engine
    kv, idle = engine.new_kv(), engine.new_kv()
    watched.submit(idle, [3] * 20).wait()
    assert engine.pulse().is_alive
    watched.rest()
    hang = Hang(watched, error)
    stuck = watched.submit(kv, [7] * 40, LONG)
    assert hang.reached.wait(10)
    queued = watched.submit(engine.new_kv(), [8] * 20)
    until(lambda: engine.pulse().busy_s > 0.04)

    engine.rebuild()
    for answer in (stuck, queued):
        assert answer.wait().reason is FinishReason.FAILED
        assert answer.wait().error == GIVEN_UP
    assert engine.pulse().is_alive
    told = len(stuck.events)
    after = watched.submit(engine.new_kv(), [5, 6, 7] * 20, LONG)
    until(lambda: len(after.events) > 0)
    hang.end()  # the old thread wakes up beside the new one
    assert after.wait().reason is FinishReason.LENGTH
    assert_exact(after, reference)
    assert len(stuck.events) == told
    assert isinstance(stuck.events[-1], Finished)
    # KVs from before may still be written to: nothing is computed with them any more.
    refused = watched.submit(idle, [3] * 25).wait()
    assert (refused.reason, refused.error) == (FinishReason.FAILED, GIVEN_UP)
    with pytest.raises(EngineClosed):
        engine.stage(idle, identify(None, (3,) * 5, "f"))
    engine.release(idle)
    assert idle.allocated_bytes == 0


def test_threads_that_wait_for_a_hanging_thread_are_released(watched: WatchedEngine) -> None:
    engine = watched.engine
    kv = engine.new_kv()
    watched.submit(kv, [3] * 20).wait()
    hang = Hang(watched)
    watched.submit(engine.new_kv(), [7] * 40, LONG)
    assert hang.reached.wait(10)
    errors: list[Exception] = []

    def stage() -> None:
        try:
            engine.stage(kv, identify(None, (3,) * 5, "f"))
        except EngineClosed as error:
            errors.append(error)

    waiting = threading.Thread(target=stage)
    waiting.start()
    pause(0.05)
    engine.rebuild()
    waiting.join(10)
    assert [str(error) for error in errors] == [GIVEN_UP]
    hang.end()


def test_a_thread_that_died_is_replaced(
    watched: WatchedEngine, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By an error outside any request: in the plan of a step."""
    engine = watched.engine

    def broken(*arguments: object) -> None:
        raise MemoryError("no memory for a plan")

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "plan", broken)
        stuck = watched.submit(engine.new_kv(), [7] * 40)
        assert (stuck.wait().reason, stuck.wait().error) == (FinishReason.FAILED, GIVEN_UP)
    until(lambda: not engine.pulse().is_alive)
    assert "engine thread died" in caplog.text
    assert watched.submit(engine.new_kv(), [7] * 40).wait().error == GIVEN_UP
    engine.rebuild()
    assert engine.pulse().is_alive
    after = watched.submit(engine.new_kv(), [7] * 40)
    after.wait()
    assert_exact(after, loaded_tiny(directory).model)


def test_a_closed_engine_is_not_rebuilt(watched: WatchedEngine) -> None:
    watched.engine.close()
    with pytest.raises(EngineClosed):
        watched.engine.rebuild()
